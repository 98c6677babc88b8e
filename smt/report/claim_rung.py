"""Shorter trainings to begin with: what they show of claims, and what they cost."""

import math
from collections.abc import Sequence
from functools import cached_property

from smt.cluster.budget import Budget, Part
from smt.config.claims import Claim
from smt.config.experiments import Run
from smt.config.numbers import experiment_of
from smt.config.project import Project
from smt.report.claim_plan import ClaimPlan, Spreads
from smt.report.collect import Results
from smt.report.comparison import TAIL
from smt.report.spread import student_t


class Rung:
    """The trainings of a scale of shorter ones that claims compare with each other."""

    def __init__(self, results: Results, spreads: Spreads, plans: Sequence[ClaimPlan]) -> None:
        """`plans` are of the claims at the scale of the paper, which `spreads` is of as well."""
        self.results, self.project, self.spreads = results, results.project, spreads
        compared = {plan.name: _compared(self.project, plan.claim) for plan in plans}
        self.claims = tuple(name for name, experiments in compared.items() if experiments)
        self.experiments = tuple(dict.fromkeys(
            experiment for experiments in compared.values() for experiment in experiments
        ))  # fmt: skip

    @property
    def seeds(self) -> int:
        """Seeds of each experiment, of the one that has fewest; 0 without any."""
        return min((len(self.project.seeds(name)) for name in self.experiments), default=0)

    @property
    def half_width(self) -> float:
        """Half the width of the confidence interval of a difference of two, the widest of all.

        NaN with one seed of each, or none.
        """
        n = self.seeds
        if n < 2:
            return math.nan
        df = len(self.experiments) * (n - 1)
        stds = [self.spreads.std(name, metric) for name, metric in self._numbers]
        return student_t(df, TAIL) * max(stds) * math.sqrt(2 / n)

    @property
    def runs(self) -> int:
        """Trainings in all."""
        return len(self._part.runs)

    @property
    def done(self) -> int:
        """Those of them that are done."""
        return self._part.done

    @property
    def gpu_hours(self) -> float:
        """Of those that are not done."""
        return self._part.gpu_hours_to_do

    @cached_property
    def _part(self) -> Part:
        runs = [
            Run(experiment=name, seed=seed)
            for name in self.experiments
            for seed in self.project.seeds(name)
        ]
        states = {run: result.state for run, result in self.results.runs.items()}
        return Budget(self.project, runs, states).total

    @property
    def _numbers(self) -> list[tuple[str, str]]:
        """Experiment and metric of each number that the claims compare."""
        names = (name for key in self.claims for name in self.project.claims[key].names)
        return [
            (experiment, name.rpartition(".")[2])
            for name in names
            if (experiment := experiment_of(self.project, name)) is not None
        ]


def _compared(project: Project, claim: Claim) -> tuple[str, ...]:
    """Return the experiments that a claim compares with each other; none if with others' alone."""
    for comparison in claim.comparisons:
        owners = (experiment_of(project, name) for name in comparison.names)
        experiments = tuple(dict.fromkeys(owner for owner in owners if owner is not None))
        if len(experiments) > 1:
            return experiments
    return ()
