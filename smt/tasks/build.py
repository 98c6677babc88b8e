"""The task of a run: classification, detection or segmentation."""

from typing import TYPE_CHECKING

from smt.config.experiments import Run
from smt.config.project import Project
from smt.engine import cpus
from smt.engine.distributed import Ranks
from smt.runs.paths import Layout

if TYPE_CHECKING:
    from smt.tasks.classify import Classification
    from smt.tasks.detect import Detection
    from smt.tasks.segment import Segmentation


def build_task(
    project: Project, layout: Layout, run: Run, ranks: Ranks, *, inherit: bool = True,
    workers: int | None = None,
) -> "Classification | Detection | Segmentation":  # fmt: skip
    """Return the task of a run: its model on this rank's device, its data, loss and metrics.

    With `inherit` off the model does not start from its parent's weights. `workers` is the number
    of data workers of this process [as the scale says].

    Raises:
        UserError: the data or the parent's weights cannot be read, or the number of processes
            cannot share a global batch.
    """
    if workers is None:
        workers = cpus.data_workers(project.scale.workers, ranks)
    kind = _class_of(project.experiments[run.experiment].task)
    return kind(project, layout, run, ranks, inherit=inherit, workers=workers)


def _class_of(task: str) -> "type[Classification] | type[Detection] | type[Segmentation]":
    """Return the class of a task; the others are not imported, which would take seconds."""
    if task == "classify":
        from smt.tasks.classify import Classification

        return Classification
    if task == "detect":
        from smt.tasks.detect import Detection

        return Detection
    from smt.tasks.segment import Segmentation

    return Segmentation
