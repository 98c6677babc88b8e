"""From steps to epochs."""

from collections.abc import Iterable

from smt.tracking.client import Point


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
