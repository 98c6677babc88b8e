"""Class maps: for each class of a new head, the row of the old head that it starts from."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from smt.datasets.text_file import text_lines
from smt.errors import DataError


def digest(rows: Sequence[int]) -> str:
    """Return the SHA-256 of the rows, one a line, whatever the spacing of the file."""
    return hashlib.sha256("".join(f"{row}\n" for row in rows).encode()).hexdigest()


def read(
    path: Path, *, source_classes: int, target_classes: int, remedy: str | None
) -> tuple[int, ...]:
    """Return the rows of a class map file: one source class number (from 0) a line.

    `remedy` is the command that makes the file, or None where the user brings it.

    Raises:
        DataError: no such file, a line that is not a number of 0 to `source_classes` - 1, a number
            given twice, or another number of lines than `target_classes`.
    """
    advice = (
        f"run: {remedy}"
        if remedy
        else f"bring a text file of {target_classes} lines, line i the source class (from 0, "
        "classes sorted by folder name) of target class i, or set its path in params/data.yaml"
    )
    lines = text_lines(path, "class map", advice, DataError)
    if len(lines) != target_classes:
        raise DataError(
            f"class map {path} has {len(lines)} lines, expected {target_classes}; {advice}"
        )
    lines_of: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        row = _row(path, number, line, source_classes)
        if row in lines_of:
            raise DataError(
                f"class map {path}: line {number} repeats source class {row} of line "
                f"{lines_of[row]}; each must be unique"
            )
        lines_of[row] = number
    return tuple(lines_of)


def _row(path: Path, number: int, line: str, source_classes: int) -> int:
    text = line.strip()
    # Not int() alone: it takes "1_000", "+3" and digits of any script.
    if not (text.isascii() and text.isdigit()) or int(text) >= source_classes:
        raise DataError(
            f"class map {path}: line {number} is {text!r}; valid: a class number of 0 to "
            f"{source_classes - 1}"
        )
    return int(text)
