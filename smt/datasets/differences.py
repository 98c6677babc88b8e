"""Where a data set and its manifest differ: counted, the first few named, all in a file."""

from collections import Counter
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

Kind = Literal["changed", "missing", "new", "unreadable", "undecodable"]

NAMED = 10
"""Differences that are named on the terminal."""


class Difference(NamedTuple):
    """One file that is not as it should be."""

    kind: Kind
    path: str
    """Below the root of the data set."""
    what: str
    """What is wrong with it, in a phrase; may be empty."""

    def __str__(self) -> str:
        return f"{self.kind:<12}{self.path}{f'  ({self.what})' if self.what else ''}"


class Differences:
    """Counts differences and writes each to a file; of millions only the first few are kept.

    Use it as a context manager. After it there is a file only if there are differences; without
    `path` there is none at all.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.counts: Counter[Kind] = Counter()
        self.first: list[Difference] = []
        self._file: BinaryIO | None = None

    def __enter__(self) -> "Differences":
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, kind: Kind, path: str, what: str = "") -> None:
        """Take down one file."""
        if self._file is None and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb")
        if self._file is not None:
            self._file.write(f"{kind}\t{path}\t{what}\n".encode())
        self.counts[kind] += 1
        # Of every kind at least one, should the first thousand all be of another.
        if len(self.first) < NAMED or self.counts[kind] == 1:
            self.first.append(Difference(kind, path, what))

    def summary(self) -> str:
        """Return how many there are of each kind, as in `2 changed, 1 missing`."""
        return ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
