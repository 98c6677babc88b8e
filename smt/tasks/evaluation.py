"""Evaluation of exported weights, apart from the training that made them."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from smt.config.experiments import Run
from smt.config.metrics import METRICS
from smt.config.project import Project
from smt.engine.distributed import Ranks
from smt.errors import TrainingError
from smt.models import weights
from smt.runs import record, shared_folder
from smt.runs.atomic import sha256
from smt.runs.lock import exclusive
from smt.runs.paths import Layout
from smt.runs.record import RunEvaluation, RunMetrics
from smt.tasks import environment
from smt.tasks.build import build_task
from smt.tasks.downstream import Downstream

if TYPE_CHECKING:
    from smt.tasks.classify import Classification
    from smt.tasks.detect import Detection
    from smt.tasks.segment import Segmentation

LOCK = "evaluation.lock"


def measure(project: Project, layout: Layout, run: Run, ranks: Ranks) -> dict[str, float]:
    """Return the metrics of a run's exported weights, and write nothing.

    Raises:
        TrainingError: the run is not done, or its weights are not those it exported.
    """
    task, _ = _trained(project, layout, run, ranks)
    return task.evaluate()


def _trained(
    project: Project, layout: Layout, run: Run, ranks: Ranks
) -> "tuple[Classification | Detection | Segmentation, RunMetrics]":
    """Return a run's task with the weights that it exported, and its final numbers."""
    final, path = record.read_metrics(layout, run), layout.weights(run)
    if final is None or not shared_folder.exists(path):
        remedy = _remedy(layout, run)
        raise TrainingError(f"{run} has not been trained: no {layout.metrics(run)}; {remedy}")
    if sha256(path) != final.weights_sha256:
        remedy = _remedy(layout, run)
        raise TrainingError(f"{path} is not the file that {layout.metrics(run)} names; {remedy}")
    task = build_task(project, layout, run, ranks, inherit=False)
    weights.load(task.model, path)
    return task, final


def _remedy(layout: Layout, run: Run) -> str:
    return f"run: {record.train_command(layout, run)}"


def evaluate(project: Project, layout: Layout, run: Run, ranks: Ranks) -> dict[str, float]:
    """Return the metrics of a run's exported weights, and write them to `evaluation.json`.

    Predictions of a detector or segmenter are written beside it.

    Raises:
        TrainingError: the run is not done, its weights are not those it exported, they give other
            numbers than its `metrics.json` says, or another process evaluates it already.
    """
    task, final = _trained(project, layout, run, ranks)
    with ExitStack() as stack:
        with ranks.fail_together():
            if ranks.is_first:
                stack.enter_context(exclusive(layout.run_dir(run), LOCK, "evaluates"))
        return _evaluate(task, final, project, layout, run, ranks)


def _evaluate(
    task: "Classification | Detection | Segmentation",
    final: RunMetrics,
    project: Project,
    layout: Layout,
    run: Run,
    ranks: Ranks,
) -> dict[str, float]:
    if isinstance(task, Downstream):
        metrics = task.evaluate(outputs=layout.evaluation_outputs(run))
    else:
        metrics = task.evaluate()
    path = layout.weights(run)
    for name, value in metrics.items():
        stated = final.metrics.get(name)
        if stated is None or abs(value - stated) > METRICS[name].tolerance:
            number = "nothing of it" if stated is None else f"{stated:.4f}"
            raise TrainingError(
                f"{path} gives {name} {value:.4f}, but {layout.metrics(run)} says {number}; "
                f"{_remedy(layout, run)} after moving the run's folder aside"
            )
    if ranks.is_first:
        dataset = project.datasets[project.dataset_of(run.experiment)]
        evaluation = RunEvaluation(
            experiment=run.experiment,
            seed=run.seed,
            scale=layout.scale,
            fingerprint=final.fingerprint,
            weights_sha256=final.weights_sha256,
            metrics_sha256=sha256(layout.metrics(run)),
            metrics=metrics,
            images=dataset.val_images,
            environment=environment.of(ranks, project.recipe_of(run.experiment)),
        )
        record.write(layout.evaluation(run), evaluation)
    return metrics
