"""Every file of the tables made again from the runs' files, and compared byte by byte.

Measured sizes, which stand in no run, are compared with formulas and weights.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

from smt.config import macs
from smt.config.experiments import Run
from smt.config.models import TimmModel
from smt.config.peers import peer_size_name, timm_names
from smt.config.project import Project, System
from smt.errors import UserError
from smt.report.build import build
from smt.report.collect import Results
from smt.report.sizes import ModelSize, Sizes
from smt.runs import shared_folder
from smt.runs.paths import Layout
from smt.verify import tensors
from smt.verify.ledger import NOTHING, Ledger, shorten

SIZES = "sizes"
Measure = Callable[[Project], Mapping[str, ModelSize]]

TABLES = "tables"
MAX_DIFFERENCES = 5
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
        for remade in paths:
            name = remade.relative_to(again.tables)
            if not names or name.stem in names:
                _compare(layout.tables / name, remade, ledger)


def _compare(path: Path, remade: Path, ledger: Ledger) -> None:
    if not shared_folder.exists(path):
        if any(path.parent.glob(f"{path.stem}.*")):
            ledger.add_mismatch(TABLES, path, "is not there, though the table is in other formats")
        else:
            ledger.add_note(TABLES, f"{path.stem} has not been made yet: smt tables {path.stem}")
        return
    ledger.add_item(TABLES, path)
    actual, expected = path.read_bytes(), remade.read_bytes()
    ledger.comparisons[TABLES] += expected.count(b"\n")
    if actual == expected:
        return
    texts = actual.decode(errors="replace"), expected.decode()
    differences = list(_of_csv(*texts) if path.suffix == ".csv" else _of_lines(*texts))
    for where, value, derived in differences[:MAX_DIFFERENCES]:
        source = "derived from the files of the runs"
        what = f"{shorten(value)} is inconsistent with {shorten(derived)}, {source}"
        ledger.add_mismatch(TABLES, f"{path}: {where}", what)
    if differences[MAX_DIFFERENCES:]:
        ledger.add_mismatch(
            TABLES, path, f"{len(differences) - MAX_DIFFERENCES} more places are inconsistent"
        )
    if not differences:
        ledger.add_mismatch(
            TABLES, path, "differs in bytes that are no part of a line (line ends?)"
        )


def _of_csv(actual: str, expected: str) -> Iterator[tuple[str, str, str]]:
    """Yield place, actual and expected text of each cell that differs."""
    rows, expected_rows = (list(csv.reader(io.StringIO(text))) for text in (actual, expected))
    if rows[:1] != expected_rows[:1] or len(rows) != len(expected_rows):
        yield from _of_lines(actual, expected)
        return
    heading = expected_rows[0]
    for row, expected_row in zip(rows[1:], expected_rows[1:], strict=True):
        labelled = "label" in heading
        name = expected_row[heading.index("label")] if labelled else " ".join(expected_row[1:3])
        for column, *cells in zip_longest(heading, row, expected_row, fillvalue=NOTHING):
            if cells[0] != cells[1]:
                yield f"row {name}, column {column}", cells[0], cells[1]


def _of_lines(actual: str, expected: str) -> Iterator[tuple[str, str, str]]:
    """Yield place, actual and expected text of each line that differs, cut to the words."""
    pairs = zip_longest(actual.split("\n"), expected.split("\n"), fillvalue="")
    for number, (line, expected_line) in enumerate(pairs, 1):
        if line != expected_line:
            yield f"line {number}{_row(expected_line)}", *_words(line, expected_line)


def _row(line: str) -> str:
    """Return the first cell of a Markdown or LaTeX row, to know it by."""
    cells = _CELLS.split(line) if line.startswith("|") else line.split(" & ")
    texts = [_MARKUP.sub("", cell).strip() for cell in cells]
    first = next((text for text in texts if text), "")
    return f" ({first})" if len(cells) > 2 and first else ""


def _words(line: str, expected: str) -> tuple[str, str]:
    """Return what differs between two lines, from whole word to whole word."""
    start = 0
    while start < min(len(line), len(expected)) and line[start] == expected[start]:
        start += 1
    end = 0
    while end < min(len(line), len(expected)) - start and line[-1 - end] == expected[-1 - end]:
        end += 1
    edge = re.compile(r"[\s|&<>{}\[\]]")
    while start and not edge.match(line[start - 1]):
        start -= 1
    while end and not edge.match(line[len(line) - end]):
        end -= 1
    return line[start : len(line) - end] or NOTHING, expected[
        start : len(expected) - end
    ] or NOTHING


# --- measured sizes -------------------------------------------------------------------------------


def check_sizes(
    project: Project, layout: Layout, ledger: Ledger, measure: Measure | None = None
) -> None:
    """Compare the sizes of one scale: MACs by formula, parameters from the weights of its runs.

    With `measure`, which counts them anew and takes torch, every figure is compared.
    """
    path, sizes = layout.sizes, Sizes.read(layout, layout.scale)
    if sizes.damage is not None:
        ledger.add_damaged_record(SIZES, sizes.damage)
        return
    if not sizes.models:
        ledger.add_note(SIZES, f"not measured at scale {layout.scale} yet")
        return
    ledger.add_item(SIZES, path)
    if measure is not None:
        recorded, measured = (
            {name: size.as_json() for name, size in models.items()}
            for models in (sizes.models, measure(project))
        )
        ledger.compare_all(SIZES, path, recorded, measured, "counting them again")
        return
    peers = {peer_size_name(name) for name in timm_names(project.peer_tables)}
    for name, size in sizes.models.items():
        where = f"{path}: {name}"
        if name in peers:
            continue  # no weights of it are here: --evaluate counts it again
        if name in project.systems:
            _system_parameters(project, layout, project.systems[name], size, where, ledger)
        elif name not in project.models:
            ledger.add_mismatch(SIZES, where, "no such model in params/models.yaml")
        else:
            _macs(project, name, size, where, ledger)
            _parameters(project, layout, name, size, where, ledger)


def _macs(project: Project, name: str, size: ModelSize, where: str, ledger: Ledger) -> None:
    classes, model = _classes(project, name), project.models[name]
    for resolution in size.resolutions:
        recorded = size.macs[str(resolution)]
        if isinstance(model, TimmModel):
            counted = project.timm_sizes.get(model.sized_text(resolution, classes))
            if counted is not None:
                place = f"{where}.macs.{resolution}.attention"
                ledger.compare(SIZES, place, recorded.attention, counted.macs, "params/sizes.yaml")
            continue
        count = macs.forward(model, resolution, num_classes=classes)
        expected = {"conv_linear": count.convolution + count.linear, "attention": count.total}
        for convention, value in expected.items():
            place = f"{where}.macs.{resolution}.{convention}"
            ledger.compare(SIZES, place, getattr(recorded, convention), value, "the formula")


def _parameters(
    project: Project, layout: Layout, name: str, size: ModelSize, where: str, ledger: Ledger
) -> None:
    """Compare with the weights of a run of this model, on as many classes; buffers do not count."""
    runs = (
        run
        for run in project.runs
        if (experiment := project.experiments[run.experiment]).model == name
        and experiment.head is None
        and project.datasets[project.dataset_of(run.experiment)].classes == _classes(project, name)
    )
    _compare_weights(layout, runs, size, where, ledger)


def _system_parameters(
    project: Project,
    layout: Layout,
    system: System,
    size: ModelSize,
    where: str,
    ledger: Ledger,
) -> None:
    """Compare with the sum of its parts, and with the weights of a run of this head on this model.

    Its MACs are not worked out by formula: `smt verify --evaluate` counts them again.
    """
    parts = sum(part.params for part in size.parts.values())
    ledger.compare(SIZES, f"{where}.params", size.params, parts, "the sum of its parts")
    runs = (
        run for run in project.runs if project.experiments[run.experiment].system == system.name
    )
    _compare_weights(layout, runs, size, where, ledger)


def _compare_weights(
    layout: Layout, runs: Iterable[Run], size: ModelSize, where: str, ledger: Ledger
) -> None:
    """Compare parameters with the first weights of these runs that can be read."""
    for run in runs:
        path = layout.weights(run)
        try:
            count = tensors.parameters(tensors.read(path))
        except (OSError, ValueError):
            continue  # not there, or a mismatch of its own
        ledger.compare(SIZES, f"{where}.params", size.params, count, path)
        return


def _classes(project: Project, name: str) -> int:
    """Return the classes that `smt profile` counts a model with: those it is evaluated on last."""
    return project.datasets[project.classifier_recipes(name)[-1].dataset].classes
