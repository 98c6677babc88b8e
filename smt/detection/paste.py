"""Masks pasted into images: a grid of probabilities over a box becomes pixels of the image."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from smt.detection.structures import Size

SAMPLES = 2**25
"""Pixels that are sampled at a time: 400 MB, of which two thirds are the places of the samples."""

OUTSIDE = 3.0
"""A place along an axis that no cell reaches: cells lie from -1 to 1, and reach half of one on."""

Piece = tuple[slice, slice, slice]
"""Masks, rows and columns."""


def paste(masks: Tensor, boxes: Tensor, size: Size, threshold: float) -> Tensor:
    """Return the pixels (N, h, w) bool of an image of `size` that belong to masks (N, M, M).

    The cells of a mask fill its box of `boxes` (N, 4), in pixels of the image. A pixel takes the
    bilinear interpolation at its centre, with zeros around the mask, and belongs where that is
    `threshold` (above 0) or more. A box without an area has no pixels.

    On a CPU only what the cells of a mask reach is sampled, elsewhere the whole image, so that no
    box has to come from the device; the result is the same.
    """
    pasted = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    pieces = _reached if masks.device.type == "cpu" else _whole
    for piece in pieces(masks, boxes, size):
        of, rows, columns = piece
        pasted[piece] = _sample(masks[of], boxes[of], rows, columns) >= threshold
    return pasted


def _reached(masks: Tensor, boxes: Tensor, size: Size) -> Iterator[Piece]:
    """Yield each mask alone, with the rows and columns that its cells reach."""
    cells = masks.shape[-1]
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        rows = _span(y1, y2, cells, size[0])
        columns = _span(x1, x2, cells, size[1])
        if rows.start < rows.stop and columns.start < columns.stop:
            yield slice(index, index + 1), rows, columns


def _span(first: float, last: float, cells: int, length: int) -> slice:
    half = (last - first) / cells / 2
    return slice(max(math.floor(first - half), 0), min(math.ceil(last + half), length))


def _whole(masks: Tensor, boxes: Tensor, size: Size) -> Iterator[Piece]:
    """Yield as many masks at a time as SAMPLES allows, with all rows and columns."""
    step = max(SAMPLES // max(size[0] * size[1], 1), 1)
    for start in range(0, len(masks), step):
        yield slice(start, start + step), slice(0, size[0]), slice(0, size[1])


def _sample(masks: Tensor, boxes: Tensor, rows: slice, columns: slice) -> Tensor:
    """Return the interpolated probabilities (N, rows, columns)."""
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    y = _places(rows, y1, y2)[:, :, None].expand(-1, -1, columns.stop - columns.start)
    x = _places(columns, x1, x2)[:, None, :].expand(-1, rows.stop - rows.start, -1)
    grid = torch.stack([x, y], dim=-1)  # (N, rows, columns, 2)
    return F.grid_sample(masks[:, None].float(), grid, align_corners=False)[:, 0]


def _places(pixels: slice, first: Tensor, last: Tensor) -> Tensor:
    """Return where the centres of pixels lie (N, pixels) between -1 and 1, the edges of boxes."""
    centres = torch.arange(pixels.start, pixels.stop, device=first.device) + 0.5
    places = (centres - first[:, None]) / (last - first)[:, None] * 2 - 1
    # Without an extent there is no place; very far ones would not fit into the integers of cells.
    return places.nan_to_num(nan=OUTSIDE).clamp(-OUTSIDE, OUTSIDE)
