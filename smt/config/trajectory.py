"""What runs under way are held against, as `params/trajectory.yaml` describes it.

Nothing of it is part of a fingerprint.
"""

from collections.abc import Collection, Iterator
from typing import Annotated, Literal

from pydantic import Field

from smt.config.types import Fraction, Name, PositiveFloat, Strict
from smt.errors import suggest

Measure = Literal["top1", "loss"]
"""top1: validation top-1 in percent; loss: mean training loss of an epoch, by which a run that is
never evaluated is judged."""

ASSUMED = "assumed"
"""Source of a reference point that nobody published: an estimate, and shown as one."""


class Floors(Strict):
    """Least distance of a band's edge from the mean of earlier runs."""

    top1: PositiveFloat
    """Points of top-1."""
    loss: PositiveFloat
    """Cross-entropy."""


class ReferencePoint(Strict):
    """Where a good run is at some point of its training."""

    at: Annotated[float, Field(gt=0, le=1)]
    """Fraction of the epochs."""
    metric: Measure
    value: float
    tolerance: Annotated[float, Field(ge=0)]
    """Distance from `value`, in the metric's unit, that is still on track."""
    source: Name
    """A source of reported.yaml, or `assumed`."""


class Trajectory(Strict):
    """When a run under way is said to be off track. It is a warning: no run is ever stopped."""

    begin: Fraction
    """Fraction of the epochs before which nothing is said."""
    spreads: PositiveFloat
    """Standard deviations over earlier runs that the edge of their band is away from their mean."""
    floors: Floors
    points: dict[Name, dict[Name, Annotated[tuple[ReferencePoint, ...], Field(min_length=1)]]]
    """By scale, then by experiment; read where fewer than two earlier runs are done."""

    def reference_problems(
        self, scales: Collection[str], experiments: Collection[str], sources: Collection[str]
    ) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield the key and the fault of each point that names what is not there, or comes twice.

        `scales`, `experiments` and `sources` (of published numbers) are what there is.
        """
        for scale, entries in self.points.items():
            if scale not in scales:
                yield ("points", scale), f"no scale {scale!r}; {suggest(scale, scales)}"
            for name, points in entries.items():
                path = ("points", scale, name)
                if name not in experiments:
                    yield path, f"no experiment {name!r}; {suggest(name, experiments)}"
                for index, point in enumerate(points):
                    yield from _problems((*path, index), point, points[:index], sources)


def _problems(
    path: tuple[str | int, ...],
    point: ReferencePoint,
    before: tuple[ReferencePoint, ...],
    sources: Collection[str],
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    valid = (ASSUMED, *sources)
    if point.source not in valid:
        where = f"no source {point.source!r} in reported.yaml; {suggest(point.source, valid)}"
        yield (*path, "source"), where
    if any((point.at, point.metric) == (other.at, other.metric) for other in before):
        yield (*path, "at"), f"a second point of {point.metric} at {point.at:g}; valid: one"
