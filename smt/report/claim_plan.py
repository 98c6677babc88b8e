"""What it takes to decide claims: seeds, runs and GPU-hours, and the most claims for so many hours.

A claim is planned on its own: trainings that others need can only add to what is known of the
spread. Runs that several claims need are counted once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from smt.cluster.budget import Budget
from smt.cluster.cost import estimate
from smt.cluster.measured import MeasuredRate
from smt.config.claims import Claim
from smt.config.experiments import Run
from smt.config.numbers import SIZES, experiment_of
from smt.config.project import Project
from smt.errors import UserError
from smt.report import evidence
from smt.report.claim_seeds import Trial
from smt.report.claims import check_here
from smt.report.collect import Results
from smt.report.comparison import probability_decided
from smt.report.spread import Spread
from smt.runs.state import State

Kind = Literal["decided", "sizes", "published", "train", "too close", "undefined"]
"""decided: here already. sizes: smt profile decides it, without a training. published: it is about
numbers of others alone. train: seeds decide it. too close: no number of seeds in reach does.
undefined: the formula has no value with the numbers that are assumed, as where it divides by 0."""

Basis = Literal["published", "stated", "seen"]
"""What the true numbers are taken to be: the published ones; where some are not published, the
difference that the claim states; those that trainings here have given."""


@dataclass(frozen=True)
class KnownSpread:
    """Standard deviation of a metric over seeds."""

    std: float
    source: str
    """Where it is seen, or what it is assumed from."""


class Spreads:
    """The spread of each metric of each recipe: as given, as seen, or as assumed in params."""

    def __init__(self, results: Results, rung: Results | None, given: Mapping[str, float]) -> None:
        """`rung`: results of shorter trainings. `given`: by metric, of all others by ``."""
        self.results, self.rung, self.given = results, rung, given

    def of(self, experiment: str, metric: str) -> KnownSpread:
        """Return the spread to plan with.

        Raises:
            UserError: none is given, seen or assumed.
        """
        for key in (metric, ""):
            if key in self.given:
                return KnownSpread(self.given[key], "given as --spread")
        if (seen := self.results.spread(experiment, metric)) is not None:
            return KnownSpread(seen.std, _seen(seen, ""))
        rung = self.rung
        if rung is not None and (seen := rung.spread(experiment, metric)) is not None:
            return KnownSpread(seen.std, _seen(seen, f" with {rung.project.scale.title}"))
        assumed = self.results.project.assumed_spreads.get(metric)
        if assumed is None:
            raise UserError(
                f"no seeds have shown how {metric} of {experiment} spreads, and "
                f"params/claims.yaml: assumed_spreads has no {metric}; give it there, or: "
                f"--spread {metric}=STD"
            )
        return KnownSpread(assumed.std, assumed.source)

    def std(self, experiment: str, metric: str) -> float:
        """Return the standard deviation alone."""
        return self.of(experiment, metric).std


def _seen(spread: Spread, where: str) -> str:
    return (
        f"seen{where}: pooled over {len(spread.experiments)} experiment(s), degrees of freedom: "
        f"{spread.df}"
    )


@dataclass(frozen=True)
class ClaimPlan:
    """What it takes to decide one claim."""

    name: str
    claim: Claim
    kind: Kind
    verdict: str
    """As it is here now."""
    basis: Basis | None = None
    margin: float | None = None
    """By how much it holds if the true numbers are those of `basis`, the tolerance included; of
    several comparisons the least."""
    seeds: int | None = None
    """Of each of its experiments, those that are done included."""
    probability: float | None = None
    """Of a verdict with these seeds."""
    runs: tuple[Run, ...] = ()
    """All that it needs, those that are done and those that they start from included."""


class ClaimPlanner:
    """Plans claims, given what is done."""

    def __init__(
        self,
        results: Results,
        spreads: Spreads,
        rates: Mapping[str, MeasuredRate],
        power: float,
    ) -> None:
        """`rates` are those that runs of an experiment have reached on GPUs."""
        self.results, self.project = results, results.project
        self.spreads, self.rates, self.power = spreads, rates, power
        self.states = {run: result.state for run, result in results.runs.items()}
        self._hours: dict[str, float] = {}

    def plan(self, name: str) -> ClaimPlan:
        """Return what it takes to decide a claim."""
        claim = self.project.claims[name]
        outcome = check_here(self.results, claim)
        if not any(self._is_ours(number) for number in claim.names):
            return ClaimPlan(name, claim, "published", outcome.verdict)
        if outcome.verdict in ("reproduced", "contradicted"):
            return ClaimPlan(name, claim, "decided", outcome.verdict)
        try:
            return self._by_seeds(name, claim, outcome.verdict)
        except ArithmeticError:
            return ClaimPlan(name, claim, "undefined", outcome.verdict)

    def _by_seeds(self, name: str, claim: Claim, verdict: str) -> ClaimPlan:
        """Return what it takes to decide a claim that is about trainings or sizes of ours.

        Raises:
            ArithmeticError: its formula has no value with the numbers that are assumed.
        """
        values, basis = true_values(self.results, claim)
        trial = Trial(self.results, claim, values, self.spreads.std)
        is_known = values.keys() == set(claim.names)
        if is_known:
            for comparison in claim.comparisons:
                comparison.margin(values)
        if not trial.experiments or not is_known:
            return ClaimPlan(name, claim, "sizes", verdict)
        seeds = trial.seeds_to_decide(self.power)
        tests = trial.tests(seeds or 2)
        margin = min((test.margin for test in tests if not test.is_exact), key=abs)
        if seeds is None:
            return ClaimPlan(name, claim, "too close", verdict, basis, margin)
        runs = self._runs(trial.experiments, seeds)
        return ClaimPlan(
            name, claim, "train", verdict, basis, margin, seeds, probability_decided(tests), runs,
        )  # fmt: skip

    def is_done(self, run: Run) -> bool:
        """Return whether a run needs no training."""
        return self.states.get(run) is State.DONE

    def gpu_hours(self, runs: Iterable[Run]) -> float:
        """Return the GPU-hours of those that are not done, each once."""
        return sum(self._cost(run.experiment) for run in set(runs) if not self.is_done(run))

    def _cost(self, experiment: str) -> float:
        if experiment not in self._hours:
            rate = self.rates.get(experiment)
            reached = None if rate is None else rate.images_per_second
            self._hours[experiment] = estimate(self.project, experiment, reached).gpu_hours
        return self._hours[experiment]

    def _is_ours(self, name: str) -> bool:
        """Return whether a number is trained or measured here."""
        if experiment_of(self.project, name) is not None:
            return True
        owner, _, key = name.rpartition(".")
        if key not in SIZES:
            return False
        table, _, peer = owner.partition(".")
        is_peer = table in self.project.peer_tables
        return not is_peer or self.project.peer_tables[table].peers[peer].timm is not None

    def _runs(self, experiments: Sequence[str], seeds: int) -> tuple[Run, ...]:
        """Return runs of so many seeds of each experiment, and what they start from.

        Seeds that params do not have yet are the next numbers; they start from what the DAG would
        let them start from if params had them.
        """
        extended = {name: self._seeds(name, seeds) for name in experiments}
        entries = {
            name: entry.model_copy(update={"seeds": extended.get(name, entry.seeds)})
            for name, entry in self.project.experiments.items()
        }
        chosen: list[Run] = []
        for name in experiments:
            runs = [Run(experiment=name, seed=seed) for seed in extended[name]]
            chosen += sorted(runs, key=lambda run: not self.is_done(run))[:seeds]
        project = self.project.model_copy(update={"experiments": entries})
        return Budget(project, chosen, self.states).runs

    def _seeds(self, experiment: str, least: int) -> tuple[int, ...]:
        """Return the seeds of an experiment, and the next numbers where they are too few."""
        seeds = self.project.seeds(experiment)
        unused = [seed for seed in range(len(seeds) + least) if seed not in seeds]
        return (*seeds, *unused[: max(least - len(seeds), 0)])


def true_values(results: Results, claim: Claim) -> tuple[dict[str, float], Basis]:
    """Return what the numbers of a claim are taken to be in truth, without sizes nobody knows.

    Seen ones, if each that is trained here has a mean and a spread. Else published ones; of an
    experiment without one, the number that makes the claim just true.
    """
    project = results.project
    here = {name: evidence.here(results, name) for name in claim.names}
    trained = [name for name in claim.names if experiment_of(project, name) is not None]
    seen = {name: number.value for name, number in here.items() if number is not None}
    spreads = (number.spread for name in trained if (number := here[name]) is not None)
    if all(name in seen for name in trained) and None not in spreads:
        published = {name: evidence.published(project, name) for name in claim.names}
        return {**_known(published), **seen}, "seen"
    known = _known({name: _reported(project, name) for name in claim.names})
    known |= {name: value for name, value in seen.items() if name not in trained}
    stated = any(evidence.published(project, name) is None for name in trained)
    return _completed(claim, known, trained), "stated" if stated else "published"


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _reported(project: Project, name: str) -> float | None:
    """Return a published number, or one that was derived from the claim: that is what it states."""
    owner, _, metric = name.rpartition(".")
    if experiment_of(project, name) is not None:
        value = project.reported.experiments.get(owner, {}).get(metric)
        return None if value is None else value.value
    return evidence.published(project, name)


def _completed(claim: Claim, known: dict[str, float], trained: Sequence[str]) -> dict[str, float]:
    """Return `known` with the numbers of trainings that nobody knows, so that margins are 0."""
    values = {**dict.fromkeys(trained, 0.0), **known}
    for comparison in claim.comparisons:
        unknown = [name for name in comparison.names if name in trained and name not in known]
        if unknown and all(name in values for name in comparison.names):
            slope = comparison.slope(unknown[0], values)
            values[unknown[0]] -= comparison.margin(values) / slope if slope else 0.0
    return values


# --- the most claims for so many hours ---------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A claim that was chosen, after those before it."""

    plan: ClaimPlan
    gpu_hours: float
    """Of the runs that it needs and those before it do not."""


class Choice:
    """The most claims that so many GPU-hours decide; of choices as large the cheapest. Exact."""

    def __init__(self, planner: ClaimPlanner, plans: Sequence[ClaimPlan], hours: float) -> None:
        self.planner, self.hours = planner, hours
        self.candidates = [plan for plan in plans if plan.kind == "train"]

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """What is chosen: each the claim that costs least after those before it."""
        left = list(most_claims(self.planner, self.candidates, self.hours))
        trained: set[Run] = set()
        steps = []
        while left:
            step = min((self._step(plan, trained) for plan in left), key=lambda it: it.gpu_hours)
            steps.append(step)
            left.remove(step.plan)
            trained |= set(step.plan.runs)
        return tuple(steps)

    @property
    def left_out(self) -> tuple[Step, ...]:
        """What is not chosen, with what it would cost on top, the cheapest first."""
        trained = {run for step in self.steps for run in step.plan.runs}
        chosen = [step.plan for step in self.steps]
        others = (self._step(plan, trained) for plan in self.candidates if plan not in chosen)
        return tuple(sorted(others, key=lambda step: step.gpu_hours))

    @property
    def gpu_hours(self) -> float:
        """Of all that is chosen, each run once."""
        return sum(step.gpu_hours for step in self.steps)

    def _step(self, plan: ClaimPlan, trained: set[Run]) -> Step:
        return Step(plan, self.planner.gpu_hours(set(plan.runs) - trained))


def most_claims(
    planner: ClaimPlanner, candidates: Sequence[ClaimPlan], hours: float
) -> tuple[ClaimPlan, ...]:
    """Return the most claims whose runs take no more than `hours`; of choices as many the cheapest.

    An integer program, solved exactly by HiGHS.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    runs = [run for run in dict.fromkeys(run for plan in candidates for run in plan.runs)
            if not planner.is_done(run)]  # fmt: skip
    costs = np.array([0.0] * len(candidates) + [planner.gpu_hours([run]) for run in runs])
    chosen = np.array([1.0] * len(candidates) + [0.0] * len(runs))
    if not candidates:
        return ()
    # A claim takes each of its runs: x_claim - x_run <= 0.
    needs = np.zeros((0, costs.size))
    for index, plan in enumerate(candidates):
        for run in set(plan.runs) & set(runs):
            row = np.zeros(costs.size)
            row[index], row[len(candidates) + runs.index(run)] = 1, -1
            needs = np.vstack((needs, row))
    rules = [LinearConstraint(needs, ub=0)] if len(needs) else []
    rules.append(LinearConstraint(costs, ub=hours))

    def solve(objective: "np.ndarray", rules: list[LinearConstraint]) -> "np.ndarray":
        solution = milp(
            objective, constraints=rules, integrality=np.ones(costs.size), bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0},
        )  # fmt: skip
        taken: np.ndarray = np.round(solution.x)
        return taken

    most = int(chosen @ solve(-chosen, rules))
    best = solve(costs, [*rules, LinearConstraint(chosen, lb=most)])
    return tuple(plan for plan, taken in zip(candidates, best, strict=False) if taken)
