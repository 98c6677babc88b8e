"""Whether a number was reproduced."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal[
    "reproduced", "within noise", "below", "above", "not comparable", "not reported", "not run"
]

NOISE = 2.0
"""Standard deviations over seeds that a published number, one draw of the same spread, may be
away from our mean by chance: 95 % of normal draws are within 1.96."""


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
    summary: Summary | None, reported: float | None, *, tolerance: float, comparable: bool
) -> Verdict:
    """Return what became of a reported number.

    `reproduced`: the mean is within `tolerance` (in the metric's unit) of it. `within noise`: it is
    further away, by no more than NOISE standard deviations over seeds. `below`, `above`: neither.
    At a scale that is not comparable with the paper only that is said.
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
    if summary.std is not None and abs(difference) <= NOISE * summary.std:
        return "within noise"
    return "below" if difference < 0 else "above"


def explain(tolerance: float) -> tuple[str, str]:
    """Return what stands below a table: how its numbers came about, and what verdicts mean."""
    return (
        "Reproduced: mean over the seeds that are done, ± their sample standard deviation (n - 1 "
        "in its denominator).",
        "Verdict, by the distance of that mean from the reported value. Reproduced: no more than "
        f"{tolerance:g}. Within noise: more, but no more than {NOISE:g} standard deviations of our "
        "seeds. Of trainings that differ by chance alone 95 in 100 lie that near to their mean, so "
        "such a distance does not speak against the paper. A single seed has no standard "
        "deviation, and is never within noise. Else: below or above.",
    )
