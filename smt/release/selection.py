"""Selection of the runs of a release: done, verified, and of the seed that `--seed` names."""

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
"""Values of `--seed` beside a number."""


class UnverifiedRun(UserError):
    """A run whose files are inconsistent with each other, so that it is not released."""

    exit_code = EXIT_UNVERIFIED


@dataclass(frozen=True)
class ModelRelease:
    """A model to be released: a finished run, and what its card says about it."""

    project: Project
    run: Run
    seed_choice: str
    """How its seed was selected, in a sentence."""
    final: RunMetrics
    provenance: Provenance
    evaluation: RunEvaluation
    seed_metrics: Mapping[int, Mapping[str, float]]
    """Final metrics of all finished seeds of the experiment."""
    spreads: Mapping[tuple[str, str], Spread]
    """Spread over seeds by recipe and metric; empty at a scale without verdicts."""

    @property
    def name(self) -> str:
        """Architecture and tag, in the form in which timm names pretrained models."""
        return f"{self.architecture}.{self.run.experiment}"

    @property
    def architecture(self) -> str:
        return self.project.experiments[self.run.experiment].model

    @property
    def model(self) -> Model:
        return self.project.smt_models[self.architecture]

    @property
    def recipe(self) -> ClassificationRecipe:
        recipe = self.project.recipe_of(self.run.experiment)
        assert isinstance(recipe, ClassificationRecipe)
        return recipe

    @property
    def dataset(self) -> Dataset:
        return self.project.datasets[self.recipe.dataset]

    def summary(self, metric: str) -> Summary | None:
        """Return mean and standard deviation of a metric over the finished seeds."""
        values = [metrics[metric] for metrics in self.seed_metrics.values() if metric in metrics]
        return summarise(values)

    def spread(self, metric: str) -> Spread | None:
        """Return the spread of a metric over seeds of its recipe; None without several seeds."""
        return self.spreads.get((self.project.experiments[self.run.experiment].recipe, metric))


def select_models(
    project: Project, paper: Project, layout: Layout, experiments: Sequence[str], seed: str
) -> list[ModelRelease]:
    """Return the models to release of these experiments, or of all classifiers.

    `seed` is `first`, `best` (by top-1) or a number. `paper` is the project at the paper's scale.

    Raises:
        UserError: no such experiment or seed, or a run that is not done.
        UnverifiedRun: a file of a run is inconsistent with the others.
    """
    require_experiments(project, experiments)
    _require_classifiers(project, experiments)
    releasable = _releasable(project)
    names = [name for name in releasable if not experiments or name in experiments]
    run_states = states.read(project, layout)
    _require_readable(run_states, names)
    finals = {name: _final_metrics(run_states, name) for name in names}
    runs = {name: _select_seed(project, run_states, name, finals[name], seed) for name in names}
    compared = _with_same_recipes(project, run_states, finals)
    _require_verified(project, paper, layout, compared)
    metrics = {
        name: [final.metrics for final in by_seed.values()] for name, by_seed in compared.items()
    }
    spreads = by_recipe(project, metrics) if project.scale.notice is None else {}
    return [_release(project, layout, runs[name], finals[name], seed, spreads) for name in names]


def _require_classifiers(project: Project, experiments: Sequence[str]) -> None:
    valid = _releasable(project)
    for name in experiments:
        if project.experiments[name].task != "classify":
            raise UserError(
                f"{name}: only classifiers are released, for timm loads no other models; valid: "
                f"{', '.join(valid)}"
            )
        if name not in valid:
            raise UserError(
                f"{name}: only models of SMT are released, and this one is of timm itself; valid: "
                f"{', '.join(valid)}"
            )


def _releasable(project: Project) -> list[str]:
    """Return the experiments that train classifiers of SMT."""
    return [
        name
        for name in project.order
        if project.experiments[name].task == "classify"
        and project.experiments[name].model in project.smt_models
    ]


def _require_readable(run_states: States, experiments: Sequence[str]) -> None:
    """Raise an error if a record of a run of these experiments cannot be read."""
    for run, run_state in run_states.items():
        if run_state.damage is not None and run.experiment in experiments:
            raise UnverifiedRun(f"nothing was released: {run_state.damage}")


def _final_metrics(run_states: States, name: str) -> dict[int, RunMetrics]:
    """Return the metrics of the finished runs of an experiment, by seed."""
    return {
        run.seed: run_state.final
        for run, run_state in run_states.items()
        if run.experiment == name and run_state.is_confirmed and run_state.final is not None
    }


def _with_same_recipes(
    project: Project, run_states: States, finals: Mapping[str, dict[int, RunMetrics]]
) -> dict[str, dict[int, RunMetrics]]:
    """Return `finals` and, at a scale with verdicts, those of experiments with the same recipes.

    A verdict depends on the spread over the seeds of all experiments of a recipe.
    """
    compared = dict(finals)
    if project.scale.notice is None:
        recipes = {project.experiments[name].recipe for name in finals}
        for name in project.order:
            if name not in compared and project.experiments[name].recipe in recipes:
                compared[name] = _final_metrics(run_states, name)
    return compared


def _select_seed(
    project: Project, run_states: States, name: str, finals: Mapping[int, RunMetrics], rule: str
) -> Run:
    seeds = project.seeds(name)
    # The best is selected once all are done: until then the first of the others is missing.
    unfinished = [seed for seed in seeds if seed not in finals] if rule == BEST else []
    if unfinished or rule == FIRST:
        seed = (unfinished or seeds)[0]
    elif rule == BEST:
        seed = _best_seed(name, finals)
    else:
        seed = _parse_seed(name, seeds, rule)
    run = Run(experiment=name, seed=seed)
    if seed not in finals:
        raise UserError(
            f"{run} is {run_states[run].state} with the present params, so it is not released; "
            f"run: smt train {name} --seed {seed} --scale {project.scale_name}; or name the "
            "experiments that are done"
        )
    return run


def _best_seed(name: str, finals: Mapping[int, RunMetrics]) -> int:
    if not all("top1" in final.metrics for final in finals.values()):
        raise UserError(f"--seed best: {name} has no top-1 to select by; give first or a number")
    return max(finals, key=lambda seed: finals[seed].metrics["top1"])


def _parse_seed(name: str, seeds: Sequence[int], text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"--seed {text}: valid: {FIRST}, {BEST} or the number of a seed")
    if int(text) not in seeds:
        valid = ", ".join(map(str, seeds))
        raise UserError(f"--seed {text}: not a seed of {name} at this scale; valid: {valid}")
    return int(text)


def _require_verified(
    project: Project, paper: Project, layout: Layout, finals: Mapping[str, Mapping[int, RunMetrics]]
) -> None:
    """Verify these runs, the runs that they start from, and the manifests of their data."""
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
    mismatches = audit.ledger.mismatches
    if mismatches:
        more = f" (and {len(mismatches) - 1} more)" if mismatches[1:] else ""
        raise UnverifiedRun(f"nothing was released: {mismatches[0]}{more}; smt verify shows all")


def _release(
    project: Project,
    layout: Layout,
    run: Run,
    finals: Mapping[int, RunMetrics],
    rule: str,
    spreads: Mapping[tuple[str, str], Spread],
) -> ModelRelease:
    final = finals[run.seed]
    evaluation = record.read_evaluation(layout, run)
    if evaluation is None:
        raise UserError(
            f"{run} has no evaluation.json, so it is not released; run: smt evaluate "
            f"{run.experiment} --seed {run.seed} --scale {layout.scale}"
        )
    return ModelRelease(
        project=project,
        run=run,
        seed_choice=_seed_choice(len(project.seeds(run.experiment)), run.seed, rule),
        final=final,
        provenance=provenance.require(layout.work_dir(run, final.fingerprint)),
        evaluation=evaluation,
        seed_metrics={seed: metrics.metrics for seed, metrics in finals.items()},
        spreads=spreads,
    )


def _seed_choice(seeds: int, seed: int, rule: str) -> str:
    if seeds == 1:
        return f"Seed {seed}, the only one that was trained."
    if rule == BEST:
        return (
            f"Seed {seed}, the best of {seeds} by top-1 on the validation set: its numbers are "
            "higher than those to expect of another training, which are the means over seeds."
        )
    which = "the first" if rule == FIRST else "as requested,"
    return f"Seed {seed}, {which} of {seeds}, selected regardless of its accuracy."
