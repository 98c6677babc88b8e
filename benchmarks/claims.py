"""How often the verdict on a claim is right, with the seeds that `smt plan --claims` asks for.

Draws final numbers of that many seeds from normal distributions with known means and the spread
that was planned with, sends them through the verdict of `smt tables claims`, and counts, for three
truths: the claim is true by the margin that was planned with, false by as much, and at the edge,
where any verdict is wrong by chance alone. Trains nothing.

    python benchmarks/claims.py --tries 4000
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from smt.config.experiments import Run
from smt.config.load import load_project
from smt.config.numbers import experiment_of
from smt.config.project import Project
from smt.report.claim_plan import ClaimPlan, ClaimPlanner, Spreads, true_values
from smt.report.claim_seeds import POWER, Trial
from smt.report.claims import check_here
from smt.report.collect import Results, RunResult
from smt.report.sizes import Macs, ModelSize, Sizes
from smt.runs.paths import default_params
from smt.runs.state import State

SCALE = "paper"
TRUTHS = {"true": 1.0, "edge": 0.0, "false": -1.0}
"""True margin of each truth, over the margin that was planned with."""


@dataclass(frozen=True)
class Rates:
    """What became of the verdicts on a claim."""

    plan: ClaimPlan
    tries: int
    counts: dict[str, Counter[str]]
    """By truth, how often each verdict came."""

    def rate(self, truth: str, verdict: str) -> float:
        return self.counts[truth][verdict] / self.tries


def without_results(project: Project) -> Results:
    """Return results without a run that is done, with sizes of which comparisons are true."""
    names = (*project.models, *project.systems)
    sizes = {name: _size(project, name) for name in names}
    for table in project.peer_tables.values():
        for peer in table.peers.values():
            if peer.timm is not None:
                sizes[f"timm.{peer.timm}"] = _model_size(peer.params_m, peer.gmacs)
    return Results(project, None, _runs(project), (), {SCALE: Sizes(SCALE, sizes)})


def _size(project: Project, name: str) -> ModelSize:
    published = project.reported.sizes_of(name)
    values = (published[key].value if key in published else 1.0 for key in ("params_m", "gmacs"))
    return _model_size(*values)


def _model_size(params_m: float, gmacs: float) -> ModelSize:
    macs = Macs(conv_linear=1, attention=round(gmacs * 1e9), reported=round(gmacs * 1e9))
    return ModelSize(title="", params=round(params_m * 1e6), macs={"224": macs})


def _runs(project: Project) -> dict[Run, RunResult]:
    """Return results of runs of which none is done."""
    runs = [
        Run(experiment=name, seed=seed)
        for name in project.experiments
        for seed in project.seeds(name)
    ]
    return {run: RunResult(run, State.NOT_STARTED, "", None, None, None) for run in runs}


class Simulation:
    """Draws results of the seeds that are planned for a claim."""

    def __init__(self, planner: ClaimPlanner, name: str, seed: int = 0) -> None:
        self.planner, self.plan = planner, planner.plan(name)
        assert self.plan.seeds is not None and self.plan.margin is not None
        self.values, _ = true_values(planner.results, self.plan.claim)
        self.rng = random.Random(f"{name} {seed}")
        claim = self.plan.claim
        self.trained = [it for it in claim.names if experiment_of(planner.project, it)]
        trial = Trial(planner.results, claim, self.values, planner.spreads.std)
        by_chance = (test for test in trial.tests(2) if not test.is_exact)
        self.comparison = min(by_chance, key=lambda test: abs(test.margin)).comparison
        seeds = tuple(range(self.plan.seeds))
        entries = {
            key: entry.model_copy(update={"seeds": seeds}) if key in trial.experiments else entry
            for key, entry in planner.project.experiments.items()
        }
        self.project = planner.project.model_copy(update={"experiments": entries})
        self.others = _runs(self.project)
        self.stds = {
            it: planner.spreads.std(it.rpartition(".")[0], it.rpartition(".")[2])
            for it in self.trained
        }

    def rates(self, tries: int) -> Rates:
        """Return what becomes of the verdicts."""
        counts = {
            truth: Counter(self._verdict((factor - 1) * self.plan.margin) for _ in range(tries))
            for truth, factor in TRUTHS.items()
        }
        return Rates(self.plan, tries, counts)

    def _verdict(self, shift: float) -> str:
        """Return the verdict where the true margin is the planned one and `shift`."""
        moved = self.trained[0]
        slope = self.comparison.slope(moved, self.values)
        values = {**self.values, moved: self.values[moved] + shift / slope}
        runs = dict(self.others)
        for name in self.trained:
            experiment, _, metric = name.rpartition(".")
            for seed in range(self.plan.seeds):
                run = Run(experiment=experiment, seed=seed)
                drawn = self.rng.gauss(values[name], self.stds[name])
                runs[run] = RunResult(run, State.DONE, "", None, None, None, {metric: drawn})
        sizes = self.planner.results.sizes
        results = Results(self.project, None, runs, (), sizes)
        return check_here(results, self.plan.claim).verdict


def table(rates: Iterable[Rates]) -> str:
    """Return a line a claim: planned and counted, in percent."""
    lines = [
        f"{'claim':<30} seeds  planned  reproduced  contradicted  wrong at the edge (2.5 + 2.5)",
        f"{'':<30}                  if true       if false   reproduced  contradicted",
    ]
    for each in rates:
        assert each.plan.probability is not None
        lines.append(
            f"{each.plan.name:<30} {each.plan.seeds:>5} {100 * each.plan.probability:>7.1f}"
            f" {100 * each.rate('true', 'reproduced'):>11.1f}"
            f" {100 * each.rate('false', 'contradicted'):>13.1f}"
            f" {100 * each.rate('edge', 'reproduced'):>12.1f}"
            f" {100 * each.rate('edge', 'contradicted'):>13.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tries", type=int, default=4000, help="Draws of each claim and truth.")
    parser.add_argument("--power", type=float, default=POWER)
    options = parser.parse_args()
    results = without_results(load_project(default_params(), SCALE))
    planner = ClaimPlanner(results, Spreads(results, None, {}), {}, options.power)
    names = [name for name in results.project.claims if planner.plan(name).kind == "train"]
    rates = [Simulation(planner, name).rates(options.tries) for name in names]
    print(f"{options.tries} draws of each claim and truth; power {options.power:g}; in percent\n")
    print(table(rates))
    wrong = max(
        max(each.rate("true", "contradicted"), each.rate("false", "reproduced")) for each in rates
    )
    print(f"\ncontradicted if true or reproduced if false: {100 * wrong:.2f} % at most")


if __name__ == "__main__":
    main()
