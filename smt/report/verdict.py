"""Whether a number was reproduced."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from smt.config.metrics import METRICS
from smt.report.spread import COVERAGE, Spread

Verdict = Literal[
    "reproduced",
    "within noise",
    "below",
    "above",
    "no verdict",
    "not comparable",
    "not reported",
    "not run",
]


@dataclass(frozen=True)
class Summary:
    """A metric over the seeds that are done."""

    n: int
    mean: float
    std: float | None
    """With n - 1 in the denominator; None for a single seed."""


def summarise(values: Sequence[float]) -> Summary | None:
    """Return mean and standard deviation, or None where there is no value."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(len(values), statistics.fmean(values), std)


def delta(measured: float, reported: float) -> float:
    """Return measured less reported, without the last bits of decimal fractions."""
    return round(measured - reported, 9)


def judge(
    summary: Summary | None,
    reported: float | None,
    spread: Spread | None,
    *,
    tolerance: float,
    comparable: bool,
) -> Verdict:
    """Return what became of a reported number.

    `reproduced`: the mean is within `tolerance` (in the metric's unit) of it. `within noise`: it is
    further away, but inside the prediction interval that `spread` gives. `below`, `above`: neither.
    `no verdict`: further away than the tolerance, and no `spread` tells how far chance goes. At a
    scale that is not comparable with the paper only that is said.
    """
    if summary is None:
        return "not run"
    if reported is None:
        return "not reported"
    if not comparable:
        return "not comparable"
    difference = delta(summary.mean, reported)
    if math.isnan(difference):
        return "below"
    if abs(difference) <= tolerance:
        return "reproduced"
    if spread is None:
        return "no verdict"
    if abs(difference) <= spread.interval(summary.n):
        return "within noise"
    return "below" if difference < 0 else "above"


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
    "100 lie in it, if results are normally distributed and spread alike in all experiments of a "
    "recipe. s is the standard deviation over seeds, pooled over the experiments of the recipe "
    "that have several that are done; t is the quantile of Student's distribution with the degrees "
    "of freedom of s."
)


def best_epoch(metric: str) -> str:
    """Return what stands below a table about the best epoch by a metric."""
    return (
        f"Best epoch: mean over the same seeds of the highest {METRICS[metric].name} that any "
        "evaluation gave, where a run was evaluated more than once and its journal is here. The "
        "release's training of classifiers prints that. The highest of many evaluations on the "
        "validation images is above the last by chance too, so delta and verdict are of the last."
    )


NOT_COMPARED = "Verdict: none, because results at this scale cannot be compared with the paper's."


def explain_verdict(tolerance: str) -> str:
    """Return what stands below a table about its verdicts."""
    return (
        "Verdict, by the distance of that mean from the reported value. Reproduced: no more than "
        f"{tolerance}. Within noise: more, but inside the interval, so that it does not speak "
        "against the paper. Below or above: outside of both; of numbers that differ by chance "
        f"alone at most {_OUTSIDE} in 100 get this verdict, and of many numbers some will. No "
        "verdict: more, and no interval to judge by."
    )
