"""The verdict on a comparison of means over seeds, and the probability of each verdict.

The margin of a comparison divided by its standard error has a noncentral t distribution, whose
noncentrality is the true margin over the true error. So the probability of a verdict follows from
the same margin, error and degrees of freedom that the verdict itself is made of.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from smt.config.formula import Comparison
from smt.report.evidence import Quantity
from smt.report.spread import COVERAGE, student_t

TAIL = (1 - COVERAGE) / 2
"""Probability of a wrong verdict, to either side."""


@dataclass(frozen=True)
class ComparisonTest:
    """A comparison of numbers with spread, by the margin that it holds by."""

    comparison: Comparison
    quantities: Mapping[str, Quantity]
    tolerance: float

    @property
    def is_exact(self) -> bool:
        """Whether none of its numbers has a spread."""
        return all(self.quantities[name].is_exact for name in self.comparison.names)

    @property
    def margin(self) -> float:
        """By how much it holds, the tolerance included if a number was trained here."""
        margin = self.comparison.margin(self._means)
        return margin if self.is_exact else margin + self.tolerance

    @property
    def error(self) -> float:
        """Standard error of the margin; NaN where the spread of a number is not known."""
        variance = 0.0
        for name in self.comparison.names:
            # 0 * NaN is NaN: what the margin does not depend on has no say.
            if slope := self.comparison.slope(name, self._means):
                variance += slope**2 * self.quantities[name].variance
        return math.sqrt(variance) if not math.isnan(variance) else math.nan

    @property
    def df(self) -> int:
        """Degrees of freedom of the spread that is known least."""
        spreads = (self.quantities[name].spread for name in self.comparison.names)
        return min((spread.df for spread in spreads if spread is not None), default=1)

    def holds(self) -> bool:
        """Return whether it is true, by more than chance if chance has a say."""
        if self.is_exact:
            return self.comparison.holds(self._means)
        return self.margin - student_t(self.df, TAIL) * self.error > 0

    def fails(self, tests: int) -> bool:
        """Return whether it is false, by more than chance where so many tests are made."""
        if self.is_exact:
            return not self.comparison.holds(self._means)
        return self.margin + student_t(self.df, TAIL / tests) * self.error < 0

    def probability_holds(self) -> float:
        """Return how often `holds` is true of trainings whose true numbers are these."""
        if self.error == 0:
            return float(self.holds())
        return _probability_above(student_t(self.df, TAIL), self.df, self.margin / self.error)

    def probability_fails(self, tests: int) -> float:
        """Return how often `fails` is true of trainings whose true numbers are these."""
        if self.error == 0:
            return float(self.fails(tests))
        quantile = student_t(self.df, TAIL / tests)
        return _probability_above(quantile, self.df, -self.margin / self.error)

    @property
    def _means(self) -> dict[str, float]:
        return {name: self.quantities[name].value for name in self.comparison.names}


def _probability_above(quantile: float, df: int, noncentrality: float) -> float:
    """Return the probability that a noncentral t variable is greater than `quantile`."""
    # What scipy.stats.nct calls, at a third of its time to import.
    from scipy.special import nctdtr

    return 1 - float(nctdtr(df, noncentrality, quantile))


def verdict(
    tests: Sequence[ComparisonTest],
) -> Literal["reproduced", "contradicted", "undecided"]:
    """Return the verdict on a claim whose comparisons are all to hold."""
    if all(test.holds() for test in tests):
        return "reproduced"
    if any(test.fails(_by_chance(tests)) for test in tests):
        return "contradicted"
    return "undecided"


def _by_chance(tests: Sequence[ComparisonTest]) -> int:
    """Return in how many comparisons chance has a say: 1 at least."""
    return max(1, sum(not test.is_exact for test in tests))


def probability_decided(tests: Sequence[ComparisonTest]) -> float:
    """Return how often `verdict` is the true one of trainings whose true numbers are these.

    Exact where chance has a say in one comparison; of several it is the least that it can be,
    whatever numbers they have in common.
    """
    if any(test.margin < 0 for test in tests):
        return max(test.probability_fails(_by_chance(tests)) for test in tests)
    return max(0.0, 1 - sum(1 - test.probability_holds() for test in tests))
