"""Every published number beside ours, once, whichever tables it stands in."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from smt.config.metrics import METRICS
from smt.config.project import Project
from smt.config.published import Row, Table
from smt.report.collect import Results, kind
from smt.report.result import MetricResult
from smt.report.tables import ResultTable


@dataclass(frozen=True)
class Agreement:
    """A published number, and what came of it."""

    label: str
    reported: float
    delta: float | None
    """Reproduced less reported; None while nothing is."""
    interval: float | None
    """Half the width of the prediction interval around what was reproduced, where it is known."""
    is_of_others: bool
    """Whether that rests on other experiments alone, because this one has a single seed."""
    tolerance: float
    kind: str
    """The verdict, or the state of a run that has none, as a word for style sheets."""
    said: str
    """The numbers and the verdict in a phrase."""


def agreements(results: Results) -> list[Agreement]:
    """Return every published number of the tables, in their order, each once.

    Numbers that were derived from published ones are not among them.
    """
    found: dict[tuple[str, str], Agreement] = {}
    for name, table in results.project.tables.items():
        built = ResultTable(name, results)
        for row in table.rows:
            for metric in table.metrics:
                result = built.result(row.experiment, metric)
                reported = result.reported
                if reported and not reported.derived_for and METRICS[metric].percent:
                    label = f"{_place(results.project, table, row)}, {METRICS[metric].name}"
                    entry = _agreement(results, row.experiment, label, table.tolerance, result)
                    found.setdefault((row.experiment, metric), entry)
    return list(found.values())


def places(project: Project) -> dict[str, str]:
    """Return what each experiment of the tables is called away from them."""
    found: dict[str, str] = {}
    for table in project.tables.values():
        for row in table.rows:
            found.setdefault(row.experiment, _place(project, table, row))
    return found


def _place(project: Project, table: Table, row: Row) -> str:
    """Return what a row is called away from its table: only a variant's name says enough alone."""
    experiment = project.experiments[row.experiment]
    is_part = experiment.group == "ablation" or experiment.head is not None
    return f"{table.title}: {row.label}" if is_part else row.label


def _agreement(
    results: Results, experiment: str, label: str, tolerance: float, result: MetricResult
) -> Agreement:
    assert result.reported is not None
    reported, summary = result.reported.value, result.summary
    if summary is None:
        states = dict.fromkeys(run.lack for run in results.of(experiment) if not run.has_numbers)
        said = ", ".join(states) or "not measured"
        look = kind(next(iter(states), "not run"))
        return Agreement(label, reported, None, None, False, tolerance, look, f"{reported}: {said}")
    value = f"{summary.mean:.{METRICS[result.metric].decimals}f}"
    if summary.std is not None:
        value += f" ± {summary.std:.{METRICS[result.metric].decimals}f}"
    return Agreement(
        label,
        reported,
        result.delta,
        result.interval,
        result.is_of_others,
        tolerance,
        result.verdict.replace(" ", "-"),
        f"{reported} → {value}, {result.verdict}",
    )


ROOM = 4.0
"""Tolerances to either side of 0 that a drawing shows at least, so that no band fills it."""
LONGEST = 10.0
"""Tolerances of an interval that a drawing makes room for: few degrees of freedom give long ones,
which then end at its edge."""


def reach(rows: Sequence[Agreement]) -> tuple[float, float]:
    """Return from where to where a drawing of distances goes, in points."""
    ends = [sign * ROOM * each.tolerance for each in rows for sign in (-1, 1)]
    for each in rows:
        if each.delta is not None:
            room = min(each.interval or 0.0, LONGEST * each.tolerance)
            ends += [each.delta - room, each.delta + room]
    return min(ends), max(ends)


def verdicts(rows: list[Agreement]) -> dict[str, int]:
    """Return how many numbers have each verdict; `not run` stands for none yet."""
    words = (each.kind.replace("-", " ") if each.delta is not None else "not run" for each in rows)
    return dict(Counter(words))
