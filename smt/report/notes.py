"""The notes below tables: definitions of numbers, intervals and verdicts."""

from collections.abc import Iterator, Sequence

from smt.config.metrics import METRICS
from smt.config.project import Project
from smt.config.published import Row, Table
from smt.report.format import joined
from smt.report.metric_result import MetricResult
from smt.report.spread import COVERAGE, Spread

DERIVED = (
    "Derived: computed here from what the source says, which does not print the number; no other "
    "table shows it as reported."
)
COUNTED = (
    "MACs in 1e9 multiply-accumulates for one image: counted as the published figures were, and "
    "with the products of attention; the table of sizes gives the size of the image."
)
REPRODUCED = (
    "Reproduced: mean over the seeds that are done, at the last epoch, ± their sample standard "
    "deviation (n - 1 in its denominator)."
)
_INSIDE = f"{100 * COVERAGE:g}"
_OUTSIDE = f"{100 * (1 - COVERAGE):.3g}"
INTERVAL_TITLE = f"{_INSIDE} % interval"
INTERVAL = (
    f"{INTERVAL_TITLE}: half the width of the prediction interval around that mean, t * s * "
    f"sqrt(1 + 1/n) for n seeds. Of trainings that differ from ours by chance alone {_INSIDE} in "
    "100 lie in it, if results are normally distributed with the same standard deviation in all "
    "experiments of a recipe. s is the standard deviation over seeds, pooled over the experiments "
    "of the recipe with several seeds that are done; t is the quantile of Student's t distribution "
    "with the degrees of freedom of s."
)


def best_epoch(metric: str, *, is_judged: bool = True) -> str:
    """Return the note on the best epoch by a metric; `is_judged`: there are deltas and verdicts."""
    note = (
        f"Best epoch: mean over the same seeds of the highest {METRICS[metric].name} that any "
        "evaluation gave, where a run was evaluated more than once and its journal is here. The "
        "release's training of classifiers prints that. Because it is "
        "selected on the validation images it is biased upwards"
    )
    return f"{note}, so delta and verdict are of the last." if is_judged else f"{note}."


NOT_MEASURED = "not measured"
"""What stands in place of a number that a run lacks though it is done."""


def unmeasured(metrics: Sequence[str], runs: Sequence[str]) -> str:
    """Return the note on metrics that are not among the numbers of runs that are done."""
    by_size = any(metric.endswith(_SIZES) for metric in metrics)
    undefined = " AP of a size is undefined where no object to detect has it." if by_size else ""
    return (
        f"{NOT_MEASURED.capitalize()}: {joined(METRICS[metric].name for metric in metrics)} of "
        f"{joined(runs)}: metrics.json of these runs does not have it.{undefined} smt evaluate "
        "EXPERIMENT tells whether their weights give it."
    )


_SIZES = ("_small", "_medium", "_large")

BRIEF = "Differences from published numbers, intervals and verdicts are in the CSV file."

NOT_COMPARED = "Verdict: none, because results at this scale cannot be compared with the paper's."


def explain_verdict(tolerance: str) -> str:
    """Return the note on verdicts."""
    return (
        "Verdict, by the distance of that mean from the reported value. Reproduced: no more than "
        f"{tolerance}. Within noise: more, but inside the interval, which is consistent "
        "with the paper. Below or above: outside of both; of numbers that differ by chance "
        f"alone at most {_OUTSIDE} in 100 get this verdict, so among many numbers some will. No "
        "verdict: more, and no interval is known."
    )


def chance_notes(
    project: Project, table: Table, results: Sequence[tuple[Row, MetricResult]]
) -> Iterator[str]:
    """Yield the notes on intervals and verdicts, given the result of each metric of each row."""
    done = [(row, result) for row, result in results if result.summary is not None]
    pooled = dict.fromkeys(
        (project.experiments[row.experiment].recipe, result.metric, result.spread)
        for row, result in done
        if result.spread is not None
    )
    yield INTERVAL
    if pooled:
        yield f"Pooled over seeds: {joined(_pooled(*entry) for entry in pooled)}."
    of_others = dict.fromkeys(row.label for row, result in done if result.is_of_others)
    if of_others:
        yield f"* A single seed, whose s comes from other experiments alone: {joined(of_others)}."
    yield explain_verdict(f"{table.tolerance:g}")
    unknown = [row for row, result in done if result.spread is None]
    if unknown:
        yield _without_interval(project, unknown)


def _pooled(recipe: str, metric: str, spread: Spread) -> str:
    """Return a pooled standard deviation with its recipe, metric and experiments."""
    return (
        f"{recipe}, {METRICS[metric].name}: s = {spread.std:.3f}, degrees of freedom: {spread.df}, "
        f"experiments: {len(spread.experiments)}"
    )


def _without_interval(project: Project, rows: Sequence[Row]) -> str:
    """Return the note on rows that are done, without an experiment to take an interval from."""
    labels = dict.fromkeys(row.label for row in rows)
    recipes = dict.fromkeys(project.experiments[row.experiment].recipe for row in rows)
    return (
        f"No interval: {joined(labels)}. No experiment of the recipe ({joined(recipes)}) has two "
        "seeds that are done, so it is unknown how far trainings differ by chance: for a number "
        "further away than the tolerance no verdict is possible. To get one, train more seeds: "
        "`seeds` in params/experiments.yaml, or of the scale in params/scales.yaml."
    )
