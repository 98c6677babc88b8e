"""Masks in COCO's annotations: polygons, or run-length encoding (RLE).

Runs go down the columns, the first one of pixels outside. RLE is a list of numbers, or compressed
to a string, six bits a character.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_CORNERS = 3
"""Fewest corners of a polygon that has an area."""


class InvalidMask(Exception):
    """A segmentation that is none; the message says why, in a phrase."""


class SegmentationInfo(NamedTuple):
    """What a segmentation says of itself before it is rasterized."""

    has_mask: bool
    """False where no polygon has an area: then there is no mask."""
    lowest: float = 0.0
    """Of all coordinates, in pixels."""
    highest: float = 0.0
    size: tuple[int, int] | None = None
    """Height and width that runs are of; None for polygons."""


def inspect_segmentation(segmentation: Any) -> SegmentationInfo:
    """Return the extent of a segmentation as it stands in an annotation.

    Raises:
        InvalidMask: it is none.
    """
    if isinstance(segmentation, dict):
        return _inspect_runs(segmentation)
    if not isinstance(segmentation, list):
        raise InvalidMask("its segmentation is neither polygons nor RLE")
    _require_polygons(segmentation)
    polygons = _polygons(segmentation)
    if not polygons:
        return SegmentationInfo(has_mask=False)
    # What is not finite stays so in a sum, while min and max may pass over it.
    if not math.isfinite(sum(map(sum, polygons))):
        raise InvalidMask("a corner of its polygons is not a finite number")
    return SegmentationInfo(True, min(map(min, polygons)), max(map(max, polygons)))


def _require_polygons(segmentation: list[Any]) -> None:
    """Refuse other formats: if they were skipped, their objects would be lost silently."""
    for polygon in segmentation:
        if isinstance(polygon, dict):
            raise InvalidMask("its RLE is in a list; valid: RLE {size, counts} without brackets")
        if not isinstance(polygon, list):
            raise InvalidMask(
                f"its segmentation is a list of {_kind(polygon)}; valid: a list of polygons, each "
                "a list of numbers"
            )
        # As in nearly every file all is well, numbers are looked at one by one only if not.
        if not {*map(type, polygon)} <= {int, float}:
            value = next(number for number in polygon if type(number) not in (int, float))
            raise InvalidMask(
                f"a polygon of it is a list of {_kind(value)}; valid: one list of numbers, x and y "
                "in turn"
            )
    if len(segmentation) >= _CORNERS and all(len(polygon) == 2 for polygon in segmentation):
        raise InvalidMask(
            "its corners are pairs; valid: polygons, x and y in turn in one list each"
        )


def _kind(value: Any) -> str:
    """Return how a message calls values of this kind."""
    names = {list: "lists", dict: "objects", str: "texts", bool: "true and false"}
    return names.get(type(value), "numbers" if isinstance(value, int | float) else "nothing")


def _polygons(segmentation: Sequence[list[float]]) -> list[list[float]]:
    """Return the polygons that have an area; COCO's readers pass over others as well."""
    return [
        polygon
        for polygon in segmentation
        if len(polygon) >= 2 * _CORNERS and len(polygon) % 2 == 0
    ]


def _inspect_runs(segmentation: dict[str, Any]) -> SegmentationInfo:
    try:
        height, width = segmentation["size"]
        counts = segmentation["counts"]
        runs = _unpack(counts) if isinstance(counts, str) else counts
        total, shortest = sum(runs), min(runs, default=0)
        kinds = {*map(type, (height, width)), *map(type, runs)}
    except (KeyError, TypeError, ValueError):
        raise InvalidMask("its RLE is not {size: [height, width], counts: [...]}") from None
    if kinds != {int}:
        raise InvalidMask("size or counts of its RLE are not integers")
    if total != height * width or shortest < 0:
        raise InvalidMask(f"its RLE covers {total} pixels, not the {height} x {width} of its size")
    return SegmentationInfo(True, size=(height, width))


def _unpack(counts: str) -> list[int]:
    """Return the lengths of runs from COCO's packed form.

    A number takes as many characters as it needs, five bits each, lowest first; bit 5 says that
    another follows, and bit 4 of the last is its sign. From the fourth on, a number stands for
    what a run is longer than the last but one.
    """
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError("no such character")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = shift = 0
    if shift:
        raise ValueError("the last number has no end")
    return runs


def rasterize(segmentations: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Return masks (N, height, width) bool of segmentations that have a mask."""
    from faster_coco_eval.core import mask

    if not segmentations:
        return np.zeros((0, height, width), bool)
    runs = [_runs(segmentation, height, width) for segmentation in segmentations]
    return np.ascontiguousarray(mask.decode(runs).transpose(2, 0, 1)).view(bool)


def _runs(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return a mask in the packed form."""
    from faster_coco_eval.core import mask

    runs: dict[str, Any] = segmentation
    if isinstance(segmentation, list):
        runs = mask.merge(mask.frPyObjects(_polygons(segmentation), height, width))
    elif isinstance(segmentation["counts"], list):
        runs = mask.frPyObjects(segmentation, height, width)
    return runs
