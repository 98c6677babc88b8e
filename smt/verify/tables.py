"""Every file of the tables made again from the runs' files, and compared byte by byte.

Measured sizes, which stand in no run, are compared with formulas and weights.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from smt.config import macs
from smt.config.project import Project, System
from smt.errors import UserError
from smt.report.build import build
from smt.report.collect import Results
from smt.runs.atomic import read_json
from smt.runs.paths import Layout
from smt.verify import tensors
from smt.verify.ledger import NOTHING, Ledger, shown

SIZES = "sizes"
Measure = Callable[[Project], Mapping[str, Any]]

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
            ledger.add_mismatch(TABLES, layout.tables, f"cannot be made again: {error}")
            return
        made = {path.relative_to(again.tables): path for path in paths}
        chosen = {path: each for path, each in made.items() if not names or path.stem in names}
        for path, remade in chosen.items():
            _compare(layout.tables / path, remade, ledger)


def _compare(path: Path, remade: Path, ledger: Ledger) -> None:
    if not path.exists():
        if any(path.parent.glob(f"{path.stem}.*")):
            ledger.add_mismatch(TABLES, path, "is not there, though the table is in other formats")
        else:
            ledger.add_note(TABLES, f"{path.stem} has not been made yet: smt tables {path.stem}")
        return
    ledger.add_item(TABLES, path)
    said, follows = path.read_bytes(), remade.read_bytes()
    cells = _count(follows)
    ledger.comparisons[TABLES] += cells
    if said == follows:
        return
    texts = said.decode(errors="replace"), follows.decode()
    differences = list(_of_csv(*texts) if path.suffix == ".csv" else _of_lines(*texts))
    for where, own, right in differences[:MOST]:
        what = f"says {shown(own)}, but {shown(right)} follows from the files of the runs"
        ledger.add_mismatch(TABLES, f"{path}: {where}", what)
    if differences[MOST:]:
        ledger.add_mismatch(TABLES, path, f"{len(differences) - MOST} more places are inconsistent")
    if not differences:
        ledger.add_mismatch(
            TABLES, path, "differs in bytes that are no part of a line (line ends?)"
        )


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


# --- measured sizes -------------------------------------------------------------------------------


def check_sizes(
    project: Project, layout: Layout, ledger: Ledger, measure: Measure | None = None
) -> None:
    """Compare the sizes of one scale: MACs by formula, parameters from the weights of its runs.

    With `measure`, which counts them anew and takes torch, every figure is compared.
    """
    path = layout.sizes
    said = _read_sizes(layout, ledger)
    if said is None:
        return
    ledger.add_item(SIZES, path)
    if measure is not None:
        ledger.compare_all(SIZES, path, said, measure(project), "counting them again")
        return
    for name, entry in said.items():
        if name in project.systems and isinstance(entry, dict):
            _system_parameters(project, layout, project.systems[name], entry, ledger)
        elif name not in project.models:
            ledger.add_mismatch(SIZES, f"{path}: {name}", "no such model in params/models.yaml")
        elif isinstance(entry, dict):
            _macs(project, layout, name, entry, ledger)
            _parameters(project, layout, name, entry, ledger)


def _read_sizes(layout: Layout, ledger: Ledger) -> dict[str, Any] | None:
    path, remedy = layout.sizes, f"remove it and run: smt profile --scale {layout.scale}"
    try:
        said = read_json(path)
    except (OSError, ValueError) as error:
        ledger.add_mismatch(SIZES, path, f"cannot be read ({error}); {remedy}")
        return None
    if said is None:
        ledger.add_note(SIZES, f"not measured at scale {layout.scale} yet")
        return None
    if not isinstance(said, dict):
        ledger.add_mismatch(SIZES, path, f"holds no mapping of models to sizes; {remedy}")
        return None
    return said


def _macs(
    project: Project, layout: Layout, name: str, entry: Mapping[str, Any], ledger: Ledger
) -> None:
    classes = _classes(project, name)
    for resolution, counts in entry.get("macs", {}).items():
        count = macs.forward(project.models[name], int(resolution), num_classes=classes)
        follows = {
            "conv_linear": count.convolution + count.linear,
            "attention": count.total,
        }
        for convention, value in follows.items():
            where = f"{layout.sizes}: {name}.macs.{resolution}.{convention}"
            ledger.compare(SIZES, where, counts.get(convention, NOTHING), value, "the formula")


def _parameters(
    project: Project, layout: Layout, name: str, entry: Mapping[str, Any], ledger: Ledger
) -> None:
    """Compare with the weights of a run of this model, on as many classes; buffers do not count."""
    for run in project.runs:
        experiment = project.experiments[run.experiment]
        path = layout.weights(run)
        if experiment.model != name or experiment.head is not None or not path.exists():
            continue
        if project.datasets[project.dataset_of(run.experiment)].classes != _classes(project, name):
            continue
        try:
            count = tensors.parameters(tensors.read(path))
        except (OSError, ValueError):
            continue  # a finding of its own
        ledger.compare(SIZES, f"{layout.sizes}: {name}.params", entry.get("params"), count, path)
        return


def _system_parameters(
    project: Project, layout: Layout, system: System, entry: Mapping[str, Any], ledger: Ledger
) -> None:
    """Compare with the weights of a run of this head on this model, and with the sum of its parts.

    Its MACs are not worked out by formula: `smt verify --evaluate` counts them again.
    """
    where, said = f"{layout.sizes}: {system.name}", entry.get("params")
    parts = sum(part["params"] for part in entry.get("parts", {}).values())
    ledger.compare(SIZES, f"{where}.params", said, parts, "the sum of its parts")
    for run in project.runs:
        experiment, path = project.experiments[run.experiment], layout.weights(run)
        if experiment.system != system.name or not path.exists():
            continue
        try:
            count = tensors.parameters(tensors.read(path))
        except (OSError, ValueError):
            continue  # a finding of its own
        ledger.compare(SIZES, f"{where}.params", said, count, path)
        return


def _classes(project: Project, name: str) -> int:
    """Return the classes that `smt profile` counts a model with: those it is evaluated on last."""
    return project.datasets[project.classifier_recipes(name)[-1].dataset].classes
