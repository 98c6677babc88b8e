"""Which runs are released: done, verified, and of the seed that was asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smt.cluster import states
from smt.cluster.states import States
from smt.config import fingerprint
from smt.config.datasets import Dataset
from smt.config.experiments import Run
from smt.config.load import require_experiments
from smt.config.models import Model
from smt.config.project import Project
from smt.config.recipes import ClassificationRecipe
from smt.errors import EXIT_UNVERIFIED, UserError
from smt.report.spread import Spread, by_recipe
from smt.report.verdict import Summary, summarise
from smt.runs import provenance, record
from smt.runs.paths import Layout
from smt.runs.record import Provenance, RunEvaluation, RunMetrics
from smt.verify import data
from smt.verify.audit import Audit

FIRST, BEST = "first", "best"
"""Rules for the seed; a number is a seed of its own."""


class UnverifiedRun(UserError):
    """A run whose files are inconsistent with each other is not released."""

    exit_code = EXIT_UNVERIFIED


@dataclass(frozen=True)
class Item:
    """One run to be released, with all that is said of it."""

    project: Project
    run: Run
    how: str
    """How its seed was chosen, in a sentence."""
    final: RunMetrics
    provenance: Provenance
    evaluation: RunEvaluation
    seeds: Mapping[int, Mapping[str, float]]
    """Final numbers of every seed of the experiment that is done."""
    spreads: Mapping[tuple[str, str], Spread]
    """How far seeds differ by chance, by recipe and metric; empty at a scale without verdicts."""

    @property
    def name(self) -> str:
        """Architecture and tag, as timm names pretrained models."""
        return f"{self.architecture}.{self.run.experiment}"

    @property
    def architecture(self) -> str:
        return self.project.experiments[self.run.experiment].model

    @property
    def model(self) -> Model:
        return self.project.models[self.architecture]

    @property
    def recipe(self) -> ClassificationRecipe:
        recipe = self.project.recipe_of(self.run.experiment)
        assert isinstance(recipe, ClassificationRecipe)
        return recipe

    @property
    def dataset(self) -> Dataset:
        return self.project.datasets[self.recipe.dataset]

    def over_seeds(self, metric: str) -> Summary | None:
        """Return a metric over the seeds that are done."""
        return summarise([each[metric] for each in self.seeds.values() if metric in each])

    def spread(self, metric: str) -> Spread | None:
        """Return how far seeds differ by chance in its recipe, if that is known."""
        return self.spreads.get((self.project.experiments[self.run.experiment].recipe, metric))


def choose(
    project: Project, paper: Project, layout: Layout, experiments: Sequence[str], seed: str
) -> list[Item]:
    """Return what is released of these experiments, or of all.

    `seed` is `first`, `best` (by top-1) or a number.

    Raises:
        UserError: no such experiment or seed, or a run that is not done.
        UnverifiedRun: a file of a run is inconsistent with the others.
    """
    require_experiments(project, experiments)
    _require_classifiers(project, experiments)
    chosen = [
        name
        for name in project.order
        if (name in experiments if experiments else project.experiments[name].task == "classify")
    ]
    every = states.read(project, layout)
    _require_readable(every, chosen)
    finals = {name: _finals(every, name) for name in chosen}
    runs = {name: _seed(project, every, name, finals[name], seed) for name in chosen}
    judged_by = _of_same_recipes(project, every, finals)
    _require_verified(project, paper, layout, judged_by)
    metrics = {name: [final.metrics for final in own.values()] for name, own in judged_by.items()}
    spreads = by_recipe(project, metrics) if project.scale.notice is None else {}
    return [_item(project, layout, runs[name], finals[name], seed, spreads) for name in chosen]


def _require_classifiers(project: Project, experiments: Sequence[str]) -> None:
    for name in experiments:
        if project.experiments[name].task != "classify":
            valid = (each for each in project.order if project.experiments[each].task == "classify")
            raise UserError(
                f"{name}: a release is loaded by timm, which knows classifiers; valid: "
                f"{', '.join(valid)}"
            )


def _require_readable(every: States, experiments: Sequence[str]) -> None:
    """Refuse to leave out a run of these experiments because its record cannot be read."""
    for run, run_state in every.items():
        if run_state.damage is not None and run.experiment in experiments:
            raise UnverifiedRun(f"nothing was released: {run_state.damage}")


def _finals(every: States, name: str) -> dict[int, RunMetrics]:
    """Return the final numbers of every seed of an experiment that is done, by seed."""
    return {
        run.seed: run_state.final
        for run, run_state in every.items()
        if run.experiment == name and run_state.is_confirmed and run_state.final is not None
    }


def _of_same_recipes(
    project: Project, states: States, finals: Mapping[str, dict[int, RunMetrics]]
) -> dict[str, dict[int, RunMetrics]]:
    """Return `finals`, and where cards have verdicts those of all experiments of their recipes.

    Verdicts rest on the seeds of all of them.
    """
    every = dict(finals)
    if project.scale.notice is None:
        recipes = {project.experiments[name].recipe for name in finals}
        for name in project.order:
            if name not in every and project.experiments[name].recipe in recipes:
                every[name] = _finals(states, name)
    return every


def _seed(
    project: Project, states: States, name: str, finals: Mapping[int, RunMetrics], seed: str
) -> Run:
    every = project.seeds(name)
    if seed == BEST:
        wanted = [each for each in every if each not in finals]
        if not wanted and all("top1" in final.metrics for final in finals.values()):
            best = max(every, key=lambda each: finals[each].metrics["top1"])
            return Run(experiment=name, seed=best)
        number = (wanted or every)[0]
        if not wanted:
            raise UserError(
                f"--seed best: {name} has no top-1 to choose by; give first or a number"
            )
    elif seed == FIRST:
        number = every[0]
    else:
        number = _number(seed)
        if number not in every:
            valid = ", ".join(map(str, every))
            raise UserError(f"--seed {seed}: not a seed of {name} at this scale; valid: {valid}")
    run = Run(experiment=name, seed=number)
    if number not in finals:
        raise UserError(
            f"{run} is {states[run].state} with the present params, so it is not released; run: "
            f"smt train {name} --seed {number} --scale {project.scale_name}; or name the "
            "experiments that are done"
        )
    return run


def _number(seed: str) -> int:
    if not (seed.isascii() and seed.isdigit()):
        raise UserError(f"--seed {seed}: valid: {FIRST}, {BEST} or the number of a seed")
    return int(seed)


def _require_verified(
    project: Project, paper: Project, layout: Layout, finals: Mapping[str, Mapping[int, RunMetrics]]
) -> None:
    """Check every run whose numbers are printed, what it started from, and the manifests."""
    audit = Audit(project, layout, paper)
    runs: dict[Run, None] = {}
    for name, seeds in finals.items():
        for seed in seeds:
            run: Run | None = Run(experiment=name, seed=seed)
            while run is not None:
                runs.setdefault(run)
                run = project.parent(run)
    for run in runs:
        audit.check_run(run)
    keys = dict.fromkeys(key for run in runs for key in fingerprint.inputs(project, run))
    data.check(layout, keys, audit.ledger)
    found = audit.ledger.mismatches
    if found:
        more = f" (and {len(found) - 1} more)" if found[1:] else ""
        raise UnverifiedRun(f"nothing was released: {found[0]}{more}; smt verify shows all")


def _item(
    project: Project,
    layout: Layout,
    run: Run,
    finals: Mapping[int, RunMetrics],
    rule: str,
    spreads: Mapping[tuple[str, str], Spread],
) -> Item:
    final = finals[run.seed]
    evaluation = record.read_evaluation(layout, run)
    if evaluation is None:
        raise UserError(
            f"{run} has not been evaluated on its own, so it is not released; run: smt evaluate "
            f"{run.experiment} --seed {run.seed} --scale {layout.scale}"
        )
    return Item(
        project=project,
        run=run,
        how=_how(len(project.seeds(run.experiment)), run.seed, rule),
        final=final,
        provenance=provenance.require(layout.work_dir(run, final.fingerprint)),
        evaluation=evaluation,
        seeds={seed: each.metrics for seed, each in finals.items()},
        spreads=spreads,
    )


def _how(seeds: int, seed: int, rule: str) -> str:
    if seeds == 1:
        return f"Seed {seed}, the only one that was trained."
    if rule == BEST:
        return (
            f"Seed {seed}, the best of {seeds} by top-1 on the validation set: its numbers are "
            "higher than what another training can expect, which is the mean."
        )
    which = "the first" if rule == FIRST else "as asked for"
    return f"Seed {seed}, {which} of {seeds}, whatever its accuracy."
