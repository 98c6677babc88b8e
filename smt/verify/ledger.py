"""The comparisons of `smt verify`, and the mismatches."""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from smt.runs.provenance import flatten
from smt.runs.record import DamagedRecord, Record

R = TypeVar("R", bound=Record)

_DIGEST = re.compile(r"\b([0-9a-f]{16})[0-9a-f]{48}\b")

NOTHING = "nothing"
"""The value of a key that a file does not have."""

OLDER = (
    "trained before records held this, or it was taken out: a change would not be seen; train the "
    "run again"
)


@dataclass(frozen=True)
class Mismatch:
    """A value that is inconsistent with what it was made from."""

    where: str
    """A file, or a run of MLflow's, and the place in it."""
    what: str
    """Its value, and the value derived from its source."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass
class Ledger:
    """The outcome of `smt verify`: comparisons by kind, and mismatches."""

    comparisons: Counter[str] = field(default_factory=Counter)
    """How many, by kind."""
    items: dict[str, set[Hashable]] = field(default_factory=dict)
    """Checked items, by kind: runs, files."""
    mismatches: list[Mismatch] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    """By kind, what could not be compared, and why."""

    def add_item(self, kind: str, item: Hashable) -> None:
        """Count `item` among the checked items of a kind."""
        self.items.setdefault(kind, set()).add(item)

    def add_note(self, kind: str, text: str) -> None:
        """Note what of a kind was not compared, and why."""
        self.notes.setdefault(kind, []).append(text)

    def load(self, kind: str, read: Callable[[], R | None]) -> R | None:
        """Return what `read` does; None without such a record, or as a mismatch if damaged."""
        try:
            return read()
        except DamagedRecord as damage:
            self.add_damaged_record(kind, damage)
            return None

    def add_damaged_record(self, kind: str, damage: DamagedRecord) -> None:
        """Add a record that cannot be read as a mismatch, once."""
        where, _, what = str(damage).partition(": ")
        if Mismatch(where, what) not in self.mismatches:
            self.add_mismatch(kind, where, what)

    def add_mismatch(self, kind: str, where: object, what: str) -> None:
        """Add a mismatch of a comparison that was made."""
        self.comparisons[kind] += 1
        self.mismatches.append(Mismatch(str(where), what))

    def compare(self, kind: str, where: object, actual: Any, expected: Any, source: object) -> bool:
        """Compare the value at `where` with that derived from its `source`; return if equal."""
        self.comparisons[kind] += 1
        if equal(actual, expected):
            return True
        origin = _DIGEST.sub(r"\1...", str(source))
        what = f"{shorten(actual)} is inconsistent with {shorten(expected)}, derived from {origin}"
        self.mismatches.append(Mismatch(str(where), what))
        return False

    def compare_all(
        self, kind: str, where: Path, actual: Mapping[str, Any], expected: Mapping[str, Any],
        source: object,
    ) -> None:  # fmt: skip
        """Compare every value inside two mappings, key by key."""
        values, expected_values = dict(flatten(actual)), dict(flatten(expected))
        for key in sorted(values.keys() | expected_values.keys()):
            value, derived = (mapping.get(key, NOTHING) for mapping in (values, expected_values))
            self.compare(kind, f"{where}: {key}", value, derived, source)


def value_or_nothing(value: Any) -> Any:
    """Return the value of a key that a file may lack; NOTHING where it does."""
    return NOTHING if value is None else value


def equal(one: Any, other: Any) -> bool:
    """Return whether two values are equal; NaN is equal to NaN here."""
    return bool(one == other or (one != one and other != other))


def shorten(value: Any, most: int = 80) -> str:
    """Return a value for a line of output: digests and long ones cut."""
    text = value if isinstance(value, str) else repr(value)
    text = _DIGEST.sub(r"\1...", " ".join(text.split()))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def reason(error: Exception) -> str:
    """Return why a file cannot be read, without its path."""
    return str(getattr(error, "strerror", None) or error)
