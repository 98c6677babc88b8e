"""What stands below a table of how chance was measured, and of what verdicts were made of it."""

from collections.abc import Iterable, Iterator, Sequence

from smt.config.metrics import METRICS
from smt.config.project import Project
from smt.config.published import Row, Table
from smt.report.metric_result import MetricResult
from smt.report.spread import Spread
from smt.report.verdict import INTERVAL, explain_verdict


def noise(
    project: Project, table: Table, results: Sequence[tuple[Row, MetricResult]]
) -> Iterator[str]:
    """Yield the notes of a table with verdicts, given each metric of each of its rows."""
    done = [(row, result) for row, result in results if result.summary is not None]
    pooled = dict.fromkeys(
        (project.experiments[row.experiment].recipe, result.metric, result.spread)
        for row, result in done
        if result.spread is not None
    )
    yield INTERVAL
    if pooled:
        yield f"Pooled over seeds: {_listed(_pooled(*each) for each in pooled)}."
    of_others = dict.fromkeys(row.label for row, result in done if result.is_of_others)
    if of_others:
        yield f"* A single seed, whose s comes from other experiments alone: {_listed(of_others)}."
    yield explain_verdict(f"{table.tolerance:g}")
    unknown = [row for row, result in done if result.spread is None]
    if unknown:
        yield _without_interval(project, unknown)


def _pooled(recipe: str, metric: str, spread: Spread) -> str:
    """Return a pooled standard deviation with what it is of."""
    return (
        f"{recipe}, {METRICS[metric].name}: s = {spread.std:.3f}, degrees of freedom: {spread.df}, "
        f"experiments: {len(spread.experiments)}"
    )


def _without_interval(project: Project, rows: Sequence[Row]) -> str:
    """Return what is said of rows that are done while nothing tells how far chance goes."""
    labels = dict.fromkeys(row.label for row in rows)
    recipes = dict.fromkeys(project.experiments[row.experiment].recipe for row in rows)
    return (
        f"No interval: {_listed(labels)}. No experiment of the recipe ({_listed(recipes)}) has two "
        "seeds that are done, so nothing tells how far trainings differ by chance, and of a number "
        "further away than the tolerance no verdict is possible. With more seeds it is: `seeds` in "
        "params/experiments.yaml, or of the scale in params/scales.yaml."
    )


def _listed(words: Iterable[str]) -> str:
    return "; ".join(words)
