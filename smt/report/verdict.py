"""Whether a number was reproduced."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from smt.report.spread import Spread

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
    """Return the verdict on a reported number.

    `reproduced`: the mean is within `tolerance` (in the metric's unit) of it. `within noise`: it is
    further away, but inside the prediction interval that `spread` gives. `below`, `above`: neither.
    `no verdict`: further away than the tolerance, and without `spread` it is unknown how far
    results differ by chance. At a scale that is not comparable with the paper: `not comparable`.
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
