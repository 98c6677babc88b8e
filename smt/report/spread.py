"""Spread over seeds of one recipe, and the prediction interval of one more training.

A published number is one training. Against the mean of n seeds it is judged by a prediction
interval, t * s * sqrt(1 + 1/n) to either side. (Two standard deviations of the seeds themselves
would hold 65, 77 and 86 % of further trainings for n = 2, 3 and 5.) Two or three seeds say little
of s, so it is pooled over all experiments of a recipe that have several: they share data, budget
and evaluation, and are taken to spread alike.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from smt.config.metrics import METRICS
from smt.config.project import Project

COVERAGE = 0.95
"""Part of trainings that differ by chance alone which lies in a prediction interval."""


@dataclass(frozen=True)
class Spread:
    """Standard deviation of a metric over seeds, pooled over the experiments of a recipe."""

    std: float
    df: int
    """Degrees of freedom: seeds, less the experiments that they are of."""
    experiments: tuple[str, ...]
    """Those that have several seeds."""

    def interval(self, n: int) -> float:
        """Return half the width of the prediction interval around a mean of `n` seeds.

        Another training lies in it with the probability COVERAGE, if results are normally
        distributed with the same standard deviation in each of the experiments.
        """
        return student_t(self.df, (1 - COVERAGE) / 2) * self.std * math.sqrt(1 + 1 / n)


@cache
def student_t(df: int, tail: float) -> float:
    """Return the quantile of Student's t that leaves the probability `tail` above it."""
    # What scipy.stats.t.ppf calls, at a third of its time to import.
    from scipy.special import stdtrit

    # Rounded, so that tables have the same bytes whatever mathematical library SciPy was built on.
    return round(float(stdtrit(df, 1 - tail)), 9)


def pooled(values: Mapping[str, Sequence[float]]) -> Spread | None:
    """Return the spread of values over seeds, given by experiment; None where all have one seed.

    An experiment with a value that is not finite is left out.
    """
    several = {
        name: seeds
        for name, seeds in values.items()
        if len(seeds) > 1 and all(map(math.isfinite, seeds))
    }
    df = sum(len(seeds) - 1 for seeds in several.values())
    if df == 0:
        return None
    means = {name: statistics.fmean(seeds) for name, seeds in several.items()}
    squares = ((value - means[name]) ** 2 for name, seeds in several.items() for value in seeds)
    return Spread(math.sqrt(math.fsum(squares) / df), df, tuple(several))


def by_recipe(
    project: Project, finals: Mapping[str, Sequence[Mapping[str, float]]]
) -> dict[tuple[str, str], Spread]:
    """Return the spread of each metric of each recipe, where one of its experiments has any.

    `finals` holds by experiment the final numbers of each seed that is done.
    """
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for name, seeds in finals.items():
        for final in seeds:
            for metric in METRICS.keys() & final.keys():
                key = (project.experiments[name].recipe, metric)
                values.setdefault(key, {}).setdefault(name, []).append(final[metric])
    spreads = {key: pooled(by_experiment) for key, by_experiment in values.items()}
    return {key: spread for key, spread in spreads.items() if spread is not None}
