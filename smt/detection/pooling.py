"""Features of boxes, cut out of a pyramid: each box from the level of its size (RoIAlign)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from smt.detection.roi_align import ADAPTIVE, bin_samples, needs_most, roi_align
from smt.detection.transfer import numbers_like

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


def counts_and_most(
    group: Tensor, groups: int, samples: Tensor | None
) -> tuple[list[int], int | None]:
    """Return how many of the N boxes are of each group, and the most of their `samples`, if given.

    `group` (N,) int64 is below `groups`. Both come in one copy: a GPU is waited for once.
    """
    counts = (group == torch.arange(groups, device=group.device)[:, None]).sum(1)
    if samples is None or not len(group):
        return counts.tolist(), None
    *numbers, most = torch.cat([counts, samples.amax().long()[None]]).tolist()
    return numbers, most


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
    images, level = len(levels[0]), level_of(boxes[:, 1:], len(levels))
    group = level * images + boxes[:, 0].long()
    samples = None
    if needs_most(levels, sampling_ratio):
        scales = numbers_like(boxes, [1 / stride for stride in strides])[level, None]  # (N, 1)
        samples = bin_samples(boxes, scales, resolution)
    counts, most = counts_and_most(group, len(levels) * images, samples)
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
            most=most,
            scale=1 / stride,
            sampling_ratio=sampling_ratio,
        )
        for features, stride, rows, of_level in zip(levels, strides, chosen, of_levels, strict=True)
    ]
    return torch.cat(pooled).to(levels[0].dtype).index_select(0, order.argsort())
