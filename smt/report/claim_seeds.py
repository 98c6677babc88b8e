"""How many seeds decide a claim, by the verdict rule and the spread of results over seeds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from smt.config.claims import Claim
from smt.config.numbers import experiment_of
from smt.report.collect import Results
from smt.report.comparison import ComparisonTest, probability_decided
from smt.report.evidence import Quantity
from smt.report.spread import Spread

POWER = 0.8
"""Probability of a verdict that seeds are planned for."""
MOST_SEEDS = 100
"""More seeds are not asked for."""

StdOf = Callable[[str, str], float]
"""Returns the standard deviation over seeds of an experiment's metric."""


@dataclass(frozen=True)
class Trial:
    """A claim, as if its true numbers were known and its experiments had some seeds."""

    results: Results
    claim: Claim
    values: Mapping[str, float]
    """What the numbers of the claim are taken to be in truth, by name."""
    std_of: StdOf

    def tests(self, n: int) -> list[ComparisonTest]:
        """Return the comparisons with `n` seeds of each experiment, or those that it has if more.

        The spread is pooled over the recipe, as `smt.report.spread` does; trainings of the recipe
        that the claim does not need are not counted unless they are done.
        """
        quantities = {name: self._quantity(name, n) for name in self.claim.names}
        return [
            ComparisonTest(comparison, quantities, self.claim.tolerance)
            for comparison in self.claim.comparisons
        ]

    def seeds_to_decide(self, power: float) -> int | None:
        """Return the seeds of each experiment at which a verdict has the probability `power`.

        None if that takes more than MOST_SEEDS.
        """
        seeds = range(2, MOST_SEEDS + 1)
        return next((n for n in seeds if probability_decided(self.tests(n)) >= power), None)

    @cached_property
    def experiments(self) -> tuple[str, ...]:
        """Experiments that the claim is about, each once."""
        owners = (experiment_of(self.results.project, name) for name in self.claim.names)
        return tuple(dict.fromkeys(owner for owner in owners if owner is not None))

    def _quantity(self, name: str, n: int) -> Quantity:
        experiment = experiment_of(self.results.project, name)
        if experiment is None:
            return Quantity(self.values[name])
        metric = name.rpartition(".")[2]
        spread = Spread(self.std_of(experiment, metric), self._df(experiment, n), (experiment,))
        return Quantity(self.values[name], self._seeds(experiment, n), spread)

    def _seeds(self, experiment: str, n: int) -> int:
        done = self._done[experiment]
        return max(done, n) if experiment in self.experiments else done

    def _df(self, experiment: str, n: int) -> int:
        """Return the degrees of freedom of the spread of a recipe."""
        recipe = self._recipe(experiment)
        same = (name for name in self._done if self._recipe(name) == recipe)
        return sum(max(self._seeds(name, n) - 1, 0) for name in same)

    @cached_property
    def _done(self) -> dict[str, int]:
        """Seeds that are done, of every experiment whose recipe the claim is about."""
        recipes = {self._recipe(name) for name in self.experiments}
        return {
            name: sum(run.has_numbers for run in self.results.of(name))
            for name in self.results.project.experiments
            if self._recipe(name) in recipes
        }

    def _recipe(self, experiment: str) -> str:
        return self.results.project.experiments[experiment].recipe
