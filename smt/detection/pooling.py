"""Features of boxes, cut out of a pyramid: each box from the level of its size (RoIAlign)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from smt.detection.roi_align import ADAPTIVE, roi_align

FINEST_SIDE = 56
"""Boxes of sides up to twice this, in pixels, are cut out of the finest level; each level above
has those twice as large (Lin et al., 2017, equation 1: 224 pixels belong to stride 16)."""


def by_image(boxes: Sequence[Tensor]) -> Tensor:
    """Return the boxes (N_i, 4) of each image as one (sum of N_i, 5): image, x1, y1, x2, y2."""
    return torch.cat(
        [
            torch.cat([image_boxes.new_full((len(image_boxes), 1), i), image_boxes], 1)
            for i, image_boxes in enumerate(boxes)
        ]
    )


def level_of(boxes: Tensor, levels: int) -> Tensor:
    """Return the level (N,) int64 out of which each box (N, 4) is cut; 0 is the finest."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    octave = torch.log2((width * height).sqrt() / FINEST_SIDE + 1e-6).floor()
    return octave.clamp(0, levels - 1).long()


def pool(
    levels: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    resolution: int,
    sampling_ratio: int = ADAPTIVE,
) -> Tensor:
    """Return features (N, C, resolution, resolution) of boxes (N, 5), which `by_image` gives.

    `levels` are (B, C, H_i, W_i), finest first. Boxes are not rounded: pixel i spans i to i + 1
    (aligned RoIAlign), and a bin has `sampling_ratio` samples along each axis.
    """
    images = len(levels[0])
    group = level_of(boxes[:, 1:], len(levels)) * images + boxes[:, 0].long()
    counts = torch.bincount(group, minlength=len(levels) * images).tolist()
    of_levels = [counts[i : i + images] for i in range(0, len(counts), images)]
    order = group.argsort(stable=True)  # by level, then by image
    chosen = order.split([sum(masks) for masks in of_levels])
    # In float32 under autocast as well: half precision cannot place a box.
    pooled = [
        roi_align(
            features.float(),
            boxes[rows],
            resolution,
            counts=of_level,
            scale=1 / stride,
            sampling_ratio=sampling_ratio,
        )
        for features, stride, rows, of_level in zip(levels, strides, chosen, of_levels, strict=True)
    ]
    return torch.cat(pooled).to(levels[0].dtype).index_select(0, order.argsort())
