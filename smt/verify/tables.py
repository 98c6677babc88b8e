"""Every file of the tables made again from the runs' files, and compared byte by byte."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

from smt.errors import UserError
from smt.report.build import build
from smt.report.collect import Results
from smt.runs.paths import Layout
from smt.verify.ledger import NOTHING, Ledger, shown

TABLES = "tables"
MOST = 5
"""Differences of one file that are named; the rest are counted."""

_MARKUP = re.compile(r"<[^>]*>|\\href\{(?:[^{}]|\\[{}])*\}")
_CELLS = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class _Elsewhere(Layout):
    """A layout whose tables go to another folder; they are made from the same files."""

    folder: Path = Path()

    @property
    def tables(self) -> Path:
        return self.folder


def check(results: Results, layout: Layout, names: Sequence[str], ledger: Ledger) -> None:
    """Compare the files of these tables, or of all and the page that leads to them."""
    with TemporaryDirectory() as folder:
        again = _Elsewhere(layout.scale, layout.results, layout.data, folder=Path(folder))
        try:
            paths = build(results, again, names)
        except UserError as error:
            ledger.find(TABLES, layout.tables, f"cannot be made again: {error}")
            return
        made = {path.relative_to(again.tables): path for path in paths}
        chosen = {path: each for path, each in made.items() if not names or path.stem in names}
        for path, remade in chosen.items():
            _compare(layout.tables / path, remade, ledger)


def _compare(path: Path, remade: Path, ledger: Ledger) -> None:
    if not path.exists():
        if any(path.parent.glob(f"{path.stem}.*")):
            ledger.find(TABLES, path, "is not there, though the table is in other formats")
        else:
            ledger.note(TABLES, f"{path.stem} has not been made yet: smt tables {path.stem}")
        return
    ledger.look(TABLES, path)
    said, follows = path.read_bytes(), remade.read_bytes()
    cells = _count(follows)
    ledger.checked[TABLES] += cells
    if said == follows:
        return
    texts = said.decode(errors="replace"), follows.decode()
    differences = list(_of_csv(*texts) if path.suffix == ".csv" else _of_lines(*texts))
    for where, own, right in differences[:MOST]:
        what = f"says {shown(own)}, but {shown(right)} follows from the files of the runs"
        ledger.find(TABLES, f"{path}: {where}", what)
    if differences[MOST:]:
        ledger.find(TABLES, path, f"{len(differences) - MOST} more places do not follow")
    if not differences:
        ledger.find(TABLES, path, "differs in bytes that are no part of a line (line ends?)")


def _count(content: bytes) -> int:
    """Return the lines of a file: what is counted as compared."""
    return content.count(b"\n")


def _of_csv(said: str, follows: str) -> Iterator[tuple[str, str, str]]:
    """Yield place, what is said and what follows, for each cell that differs."""
    ours, theirs = (list(csv.reader(io.StringIO(text))) for text in (said, follows))
    if ours[:1] != theirs[:1] or len(ours) != len(theirs):
        yield from _of_lines(said, follows)
        return
    heading = theirs[0]
    for own, right in zip(ours[1:], theirs[1:], strict=True):
        name = right[heading.index("label")] if "label" in heading else " ".join(right[1:3])
        cells = zip_longest(heading, own, right, fillvalue=NOTHING)
        for column, one, other in cells:
            if one != other:
                yield f"row {name}, column {column}", one, other


def _of_lines(said: str, follows: str) -> Iterator[tuple[str, str, str]]:
    """Yield place, what is said and what follows, for each line that differs, cut to the words."""
    ours, theirs = said.split("\n"), follows.split("\n")
    for number, (own, right) in enumerate(zip_longest(ours, theirs, fillvalue=""), 1):
        if own != right:
            yield f"line {number}{_row(right)}", *_words(own, right)


def _row(line: str) -> str:
    """Return the first cell of a Markdown or LaTeX row, to know it by."""
    cells = _CELLS.split(line) if line.startswith("|") else line.split(" & ")
    texts = [_MARKUP.sub("", cell).strip() for cell in cells]
    first = next((text for text in texts if text), "")
    return f" ({first})" if len(cells) > 2 and first else ""


def _words(own: str, right: str) -> tuple[str, str]:
    """Return what differs between two lines, from whole word to whole word."""
    start = 0
    while start < min(len(own), len(right)) and own[start] == right[start]:
        start += 1
    end = 0
    while end < min(len(own), len(right)) - start and own[-1 - end] == right[-1 - end]:
        end += 1
    edge = re.compile(r"[\s|&<>{}\[\]]")
    while start and not edge.match(own[start - 1]):
        start -= 1
    while end and not edge.match(own[len(own) - end]):
        end -= 1
    return own[start : len(own) - end] or NOTHING, right[start : len(right) - end] or NOTHING
