"""From steps to epochs."""

from collections.abc import Iterable

from smt.spec import Project
from smt.tracking.server import Point


def steps_per_epoch(project: Project, experiment: str) -> int:
    """Return the global batches of an epoch; what is left of the images is dropped."""
    recipe = project.recipes[project.experiments[experiment].recipe]
    return max(project.datasets[recipe.dataset].train_images // recipe.global_batch, 1)


def epoch_means(points: Iterable[Point], steps: int) -> dict[float, float]:
    """Return the mean of a metric over each whole epoch of `steps`, by the epochs done.

    A point holds the mean since the point before, so it counts by the steps between them.
    """
    totals: dict[int, float] = {}
    whole: dict[float, float] = {}
    before = 0
    for point in points:
        epoch = -(-point.step // steps)
        totals[epoch] = totals.get(epoch, 0.0) + point.value * (point.step - before)
        before = point.step
        if point.step == epoch * steps:
            whole[float(epoch)] = totals[epoch] / steps
    return whole
