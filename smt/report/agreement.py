"""Published and reproduced numbers side by side, each once for all tables."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from smt.config.metrics import METRICS
from smt.config.project import Project
from smt.config.published import Row, Table
from smt.report.collect import Results
from smt.report.format import css_class, plus_minus
from smt.report.metric_result import MetricResult, metric_result


@dataclass(frozen=True)
class Agreement:
    """A published number beside the reproduced one."""

    label: str
    reported: float
    delta: float | None
    """Reproduced less reported; None while nothing is."""
    interval: float | None
    """Half the width of the prediction interval around the reproduced mean, if there is one."""
    is_of_others: bool
    """Whether that is of other experiments alone, because this one has a single seed."""
    tolerance: float
    kind: str
    """The verdict, or the state of a run that has none, as a word for style sheets."""
    text: str
    """The numbers and the verdict in a phrase."""


def agreements(results: Results) -> list[Agreement]:
    """Return every published number of the tables, in their order, each once.

    Numbers that were derived from published ones are not among them.
    """
    rows: dict[tuple[str, str], Agreement] = {}
    names = places(results.project)
    for name, table in results.project.tables.items():
        for row in table.rows:
            for metric in table.metrics:
                result = metric_result(results, row.experiment, metric, name)
                reported = result.reported
                if reported and not reported.derived_for and METRICS[metric].percent:
                    label = f"{names[row.experiment]}, {METRICS[metric].name}"
                    entry = _agreement(results, row.experiment, label, table.tolerance, result)
                    rows.setdefault((row.experiment, metric), entry)
    return list(rows.values())


def places(project: Project) -> dict[str, str]:
    """Return the label of each experiment of the tables outside of its table."""
    names: dict[str, str] = {}
    for table in project.tables.values():
        for row in table.rows:
            names.setdefault(row.experiment, _place(project, table, row))
    return names


def _place(project: Project, table: Table, row: Row) -> str:
    """Return the label of a row outside of its table: with the title, unless it is a variant."""
    experiment = project.experiments[row.experiment]
    is_part = experiment.group == "ablation" or experiment.head is not None
    return f"{table.title}: {row.label}" if is_part else row.label


def _agreement(
    results: Results, experiment: str, label: str, tolerance: float, result: MetricResult
) -> Agreement:
    assert result.reported is not None
    reported, summary = result.reported.value, result.summary
    if summary is None:
        lacks = dict.fromkeys(run.lack for run in results.of(experiment) if not run.has_numbers)
        text = f"{reported}: {', '.join(lacks) or 'not measured'}"
        word = css_class(next(iter(lacks), "not run"))
        return Agreement(label, reported, None, None, False, tolerance, word, text)
    value = plus_minus(summary.mean, summary.std, METRICS[result.metric].decimals)
    return Agreement(
        label,
        reported,
        result.delta,
        result.interval,
        result.is_of_others,
        tolerance,
        css_class(result.verdict),
        f"{reported} → {value}, {result.verdict}",
    )


_LEAST = 4.0
"""Tolerances to either side of 0 that the axis shows at least, so that no band fills it."""
_LONGEST = 10.0
"""Tolerances of an interval that the axis makes room for: few degrees of freedom give long ones,
which then end at its edge."""


def axis_range(rows: Sequence[Agreement]) -> tuple[float, float]:
    """Return the limits of an axis of distances, in points."""
    ends = [sign * _LEAST * row.tolerance for row in rows for sign in (-1, 1)]
    for row in rows:
        if row.delta is not None:
            half = min(row.interval or 0.0, _LONGEST * row.tolerance)
            ends += [row.delta - half, row.delta + half]
    low, high = min(ends), max(ends)
    margin = 0.08 * (high - low)
    return low - margin, high + margin


def verdicts(rows: list[Agreement]) -> dict[str, int]:
    """Return the count of numbers by verdict; `not run` for those without one."""
    words = (row.kind.replace("-", " ") if row.delta is not None else "not run" for row in rows)
    return dict(Counter(words))
