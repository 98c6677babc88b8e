"""Predictions of a classifier, an image a line: a file that grows, and is gone on with later."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smt.errors import DataError
from smt.runs.journal import open_after_whole_line

HEADER = ("image", "label", "best", "loss")


class ImagePrediction(NamedTuple):
    """What a classifier says of an image."""

    image: str
    label: int
    best: tuple[int, ...]
    """Classes of the highest logits, highest first: five, or all of fewer."""
    loss: float
    """Cross entropy."""


class PredictionFile:
    """A CSV file with a line an image, in the order in which they were evaluated.

    A last line that an interruption left without its end is dropped. `images` are the names that
    the first lines must have.

    Raises:
        DataError: the file holds something else.
    """

    def __init__(self, path: Path, images: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = open_after_whole_line(path)
        self._file.seek(0)
        content = self._file.read().decode()
        if content:
            self.rows = list(_parse(path, content, images))
        else:
            self.rows = []
            self._write([HEADER])

    def append(self, rows: Sequence[ImagePrediction]) -> None:
        """Add the predictions of a batch, on disk once this returns as far as the system keeps."""
        self.rows += rows
        self._write(
            (row.image, row.label, " ".join(map(str, row.best)), repr(row.loss)) for row in rows
        )

    def _write(self, lines: Iterable[Sequence[object]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        self._file.write(text.getvalue().encode())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def columns(self, count: int) -> "Columns":
        """Return what the first `count` images gave."""
        rows = self.rows[:count]
        return Columns(
            np.array([row.label for row in rows], np.int64),
            np.array([row.best for row in rows], np.int64).reshape(len(rows), -1 if rows else 0),
            np.array([row.loss for row in rows], np.float64),
        )


class Columns(NamedTuple):
    """Predictions as arrays."""

    labels: np.ndarray
    """(N,)"""
    best: np.ndarray
    """(N, k)"""
    losses: np.ndarray
    """(N,)"""

    def hits(self, k: int) -> int:
        """Return of how many images the label is among the first k."""
        return int((self.best[:, :k] == self.labels[:, None]).sum())


def _parse(path: Path, content: str, images: Sequence[str]) -> Iterable[ImagePrediction]:
    remedy = "remove it, and the evaluation begins again"
    lines = csv.reader(io.StringIO(content))
    if tuple(next(lines)) != HEADER:
        raise DataError(f"{path}: line 1 is not {','.join(HEADER)}; {remedy}")
    for number, line in enumerate(lines, 2):
        try:
            image, label, best, loss = line
            row = ImagePrediction(
                image, int(label), tuple(int(one) for one in best.split()), float(loss)
            )
        except ValueError:
            raise DataError(f"{path}: line {number} is no prediction; {remedy}") from None
        if number - 2 >= len(images) or image != images[number - 2]:
            raise DataError(f"{path}: line {number} is of {image}, another image; {remedy}")
        yield row
