"""Boxes: offsets from reference boxes, clipping, overlaps, and the losses of both."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from smt.detection.transfer import numbers_like, to_device

LARGEST_GROWTH = math.log(1000 / 16)
"""Of a side over its reference, as a logarithm: larger predictions are cut (mmdet, torchvision)."""


def encode(boxes: Tensor, references: Tensor, deviations: Sequence[float]) -> Tensor:
    """Return the offsets (N, 4) that take `references` to `boxes`, divided by `deviations`.

    dx and dy are shifts of the centre over the reference's width and height, dw and dh logarithms
    of the ratios of the sides (R-CNN, appendix C).
    """
    x, y, width, height = _centres(references)
    to_x, to_y, to_width, to_height = _centres(boxes)
    offsets = torch.stack(
        [
            (to_x - x) / width,
            (to_y - y) / height,
            torch.log(to_width / width),
            torch.log(to_height / height),
        ],
        dim=-1,
    )
    return offsets / numbers_like(offsets, deviations)


def decode(
    offsets: Tensor,
    references: Tensor,
    deviations: Sequence[float],
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Return the boxes (..., 4) that `offsets` (..., 4) make of `references` (..., 4).

    With `size` (height, width) they are cut to the image.
    """
    dx, dy, dw, dh = (offsets * numbers_like(offsets, deviations)).unbind(-1)
    x, y, width, height = _centres(references)
    x, y = x + dx * width, y + dy * height
    width = width * dw.clamp(-LARGEST_GROWTH, LARGEST_GROWTH).exp()
    height = height * dh.clamp(-LARGEST_GROWTH, LARGEST_GROWTH).exp()
    boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)
    return boxes if size is None else clip(boxes, size)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes (..., 4) cut to an image of `size` (height, width)."""
    height, width = size
    limit = numbers_like(boxes, [width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def extents(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return what boxes as fractions of images are multiplied by (B, 4).

    `sizes` are heights and widths; the result has width and height twice.
    """
    sides = torch.tensor(sizes, dtype=torch.float32).flip(-1)  # (B, 2)
    return to_device(sides.repeat(1, 2), device)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return centres x and y, widths and heights."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
