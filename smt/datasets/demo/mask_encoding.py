"""Masks in COCO's forms, exactly: polygons along the edges of pixels, and lengths of runs."""

from collections.abc import Iterator

import numpy as np

_Point = tuple[int, int]
"""x and y of a corner between pixels."""


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return the lengths of runs down the columns of a mask (H, W) bool, first those outside."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    lengths: list[int] = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    return lengths


def polygons(mask: np.ndarray) -> list[list[int]] | None:
    """Return a polygon [x, y, ...] around each part of a mask (H, W) bool, or None if it has holes.

    Parts that touch at a corner alone are parts of their own.
    """
    loops = list(_loops(mask))
    # Clockwise, as y points down, a loop has pixels inside; the other way round it is a hole.
    if any(_doubled_area(loop) < 0 for loop in loops):
        return None
    return [[value for point in _corners(loop) for value in point] for loop in loops]


def _loops(mask: np.ndarray) -> Iterator[list[_Point]]:
    """Yield the points of each closed line of edges, pixels to the right of the way."""
    after = _edges(mask)
    while after:
        # The leftmost point, where no two parts can touch: one way leads on from it.
        start = min(after)
        loop: list[_Point] = []
        point, way = start, (0, 0)
        while not loop or point != start:
            loop.append(point)
            ways = after[point]
            # Where two parts touch, the line stays with the part that it is around.
            way = _right_turn(way) if len(ways) > 1 and _right_turn(way) in ways else ways[0]
            ways.remove(way)
            if not ways:
                del after[point]
            point = (point[0] + way[0], point[1] + way[1])
        yield loop


def _edges(mask: np.ndarray) -> dict[_Point, list[_Point]]:
    """Return the ways that lead on from each corner of a pixel at the mask's edge."""
    after: dict[_Point, list[_Point]] = {}
    padded = np.pad(mask, 1)
    down, along = np.diff(padded.astype(np.int8), axis=0), np.diff(padded.astype(np.int8), axis=1)
    for y, x in zip(*(axis.tolist() for axis in np.nonzero(down)), strict=True):
        # Below the edge lies the mask: to the right of who goes to the right.
        start, way = ((x - 1, y), (1, 0)) if down[y, x] > 0 else ((x, y), (-1, 0))
        after.setdefault(start, []).append(way)
    for y, x in zip(*(axis.tolist() for axis in np.nonzero(along)), strict=True):
        start, way = ((x, y), (0, -1)) if along[y, x] > 0 else ((x, y - 1), (0, 1))
        after.setdefault(start, []).append(way)
    return after


def _right_turn(way: _Point) -> _Point:
    return -way[1], way[0]


def _doubled_area(loop: list[_Point]) -> int:
    following = loop[1:] + loop[:1]
    return sum(
        x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(loop, following, strict=True)
    )


def _corners(loop: list[_Point]) -> list[_Point]:
    """Return the points of a loop at which its direction changes."""
    before, after = loop[-1:] + loop[:-1], loop[1:] + loop[:1]
    return [
        point
        for past, point, following in zip(before, loop, after, strict=True)
        if (past[0] == point[0]) != (point[0] == following[0])
    ]
