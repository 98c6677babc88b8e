"""The data of the figures, from MLflow. `smt.report.plots` plots them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from smt.config.experiments import Experiment
from smt.config.metrics import HEADLINES, METRICS, Metric
from smt.config.peers import PeerTable
from smt.config.project import Project
from smt.config.recipes import ClassificationRecipe
from smt.report.collect import Results, RunResult
from smt.report.metric_result import summary_of
from smt.report.peers import PeerGrid
from smt.report.sizes import Sizes
from smt.report.trajectory import epoch_means
from smt.report.verdict import summarise

CURVES = "learning_curves"
ACCURACY = "accuracy_vs_macs"
AGREEMENT = "reported_vs_reproduced"
COST = "cost"
"""Of models of others beside SMT: the name of their table follows."""


@dataclass(frozen=True)
class Band:
    """A quantity over epochs: mean over seeds, with the spread between them."""

    epochs: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """0 where there is one seed."""


@dataclass(frozen=True)
class Curve:
    """The learning curves of one experiment."""

    label: str
    seeds: int
    """Number of runs in it; 0 while none is started."""
    loss: Band
    """Mean training loss of each epoch."""
    score: Band
    """The headline metric on the validation set, in percent."""
    metric: str
    """Name of that metric."""
    apart: tuple["Curve", ...] = ()
    """Seeds that are not done beside some that are: each for itself, in no mean."""


@dataclass(frozen=True)
class Marker:
    """One experiment in accuracy against MACs."""

    label: str
    group: str
    """pretrain, finetune or ablation."""
    gmacs: float
    top1: float
    std: float
    reported: float | None


def titles(project: Project) -> dict[str, str]:
    """Return the name of every figure of the project, with its title."""
    others = {
        f"{CURVES}_{name}": f"Learning curves: {table.title}"
        for name, table in project.tables.items()
        if not table.brief
        and not all(_is_variant(project.experiments[row.experiment]) for row in table.rows)
    }
    return {
        CURVES: "Learning curves: variants",
        **others,
        ACCURACY: "Accuracy against multiply-accumulates",
        AGREEMENT: "Reported against reproduced",
        **{cost_name(name): _cost_title(table) for name, table in project.peer_tables.items()},
    }


def cost_name(peer_table: str) -> str:
    """Return the name of the figure that goes with a table of `params/peers.yaml`."""
    return f"{COST}_{peer_table}"


def _cost_title(table: PeerTable) -> str:
    return f"{table.title}: published {METRICS[table.metrics[0]].name} against MACs"


def cost_heading(project: Project, figure: str) -> str:
    """Return the heading of the metric that such a figure shows."""
    return METRICS[project.peer_tables[figure.removeprefix(f"{COST}_")].metrics[0]].heading


def is_cost(figure: str) -> bool:
    """Return whether a figure is one of models of others beside SMT."""
    return figure.startswith(f"{COST}_")


def _is_variant(experiment: Experiment) -> bool:
    """Whether an experiment is a classifier of the paper, and not one of an ablation."""
    return experiment.group in ("pretrain", "finetune")


def is_curves(figure: str) -> bool:
    """Return whether a figure is one of learning curves."""
    return figure.startswith(CURVES)


def labelled(project: Project, figure: str) -> dict[str, str]:
    """Return experiment and label of each line of a figure of learning curves."""
    if figure != CURVES:
        table = project.tables[figure.removeprefix(f"{CURVES}_")]
        return {row.experiment: row.label for row in table.rows}
    return {
        name: experiment.title
        for name, experiment in project.experiments.items()
        if _is_variant(experiment)
    }


def curves(results: Results, figure: str) -> list[Curve]:
    """Return the curves of a figure, of every run that MLflow has something of."""
    return [
        _curve(results, experiment, label)
        for experiment, label in labelled(results.project, figure).items()
    ]


def metric_of(curves: Sequence[Curve]) -> Metric:
    """Return the metric of the curves of a figure, which are all of one task."""
    return METRICS[curves[0].metric if curves else HEADLINES["classify"]]


def _curve(results: Results, experiment: str, label: str) -> Curve:
    """Return the mean over the seeds that are done, or over all in MLflow if none is."""
    runs = [run for run in results.of(experiment) if run.remote is not None]
    done = [run for run in runs if run.has_numbers]
    apart = tuple(
        replace(
            _mean(results, experiment, (run,)), label=f"{label}, seed {run.run.seed}, {run.state}"
        )
        for run in runs
        if done and run not in done
    )
    return replace(_mean(results, experiment, done or runs), label=label, apart=apart)


def _mean(results: Results, experiment: str, runs: Sequence[RunResult]) -> Curve:
    server, project = results.server, results.project
    metric = HEADLINES[project.experiments[experiment].task]
    steps = project.steps_per_epoch(experiment)
    losses, scores = [], []
    for run in runs:
        assert server is not None and run.remote is not None  # it is where these runs were found
        losses.append(epoch_means(server.history(run.remote.run_id, "train/loss"), steps))
        score = server.history(run.remote.run_id, f"eval/{metric}")
        scores.append({point.step / steps: point.value for point in score})
    return Curve("", len(runs), _band(losses), _band(scores), metric)


def _band(series: Iterable[dict[float, float]]) -> Band:
    seeds = list(series)
    epochs = sorted({epoch for seed in seeds for epoch in seed})
    summaries = [summarise([seed[epoch] for seed in seeds if epoch in seed]) for epoch in epochs]
    return Band(
        tuple(epochs),
        tuple(summary.mean for summary in summaries if summary),
        tuple(summary.std or 0.0 for summary in summaries if summary),
    )


def markers(results: Results) -> list[Marker]:
    """Return the experiments of the tables that have a top-1 and whose model was measured."""
    project = results.project
    sizes = results.sizes[project.scale_name]
    names = dict.fromkeys(name for table in project.tables.values() for name in table.experiments)
    candidates = (_marker(results, sizes, name) for name in names)
    return [marker for marker in candidates if marker is not None]


def _marker(results: Results, sizes: Sizes, name: str) -> Marker | None:
    project = results.project
    experiment = project.experiments[name]
    recipe = project.recipes[experiment.recipe]
    if not isinstance(recipe, ClassificationRecipe):
        return None
    macs = sizes.macs(experiment.model, recipe.resolution, "reported")
    summary = summary_of(results.of(name), "top1")
    if macs is None or summary is None:
        return None
    reported = project.reported_value(name, "top1")
    return Marker(
        label=experiment.title,
        group=experiment.group,
        gmacs=macs / 1e9,
        top1=summary.mean,
        std=summary.std or 0.0,
        # What is reported of the paper's models does not belong on another scale's axis.
        reported=reported.value if reported and project.scale.notice is None else None,
    )


@dataclass(frozen=True)
class PublishedModel:
    """A model by what was published of it, and by its cost."""

    label: str
    is_smt: bool
    score: float
    """Published, in percent."""
    gmacs: float
    is_measured: bool
    """Whether `gmacs` were counted here; else they are the published ones."""


def published_models(results: Results, figure: str) -> list[PublishedModel]:
    """Return the models of a table of `params/peers.yaml` that have a score, the cheapest first."""
    grid = PeerGrid(figure.removeprefix(f"{COST}_"), results)
    models = [
        PublishedModel(
            label=_short_label(results.project, row),
            is_smt=row["experiment"] in grid.table.experiments,
            score=float(row[f"{grid.table.metrics[0]}_published"]),
            gmacs=float(row["gmacs_measured"] or row["gmacs_published"]),
            is_measured=bool(row["gmacs_measured"]),
        )
        for row in grid.rows
        if row[f"{grid.table.metrics[0]}_published"]
        and (row["gmacs_measured"] or row["gmacs_published"])
    ]
    return sorted(models, key=lambda model: model.gmacs)


def _short_label(project: Project, row: Mapping[str, str]) -> str:
    """Return what stands beside a marker: of a classifier of SMT the title of its model."""
    experiment = project.experiments.get(row["experiment"])
    if experiment is None or experiment.model not in project.smt_models or experiment.head:
        return row["model"]
    return project.models[experiment.model].title
