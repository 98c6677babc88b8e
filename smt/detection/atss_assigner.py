"""Which anchors are to find which object (ATSS, Zhang et al., 2020, algorithm 1)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from smt.detection.matching import BACKGROUND

MARGIN = 0.01
"""Pixels by which an anchor's centre has to be inside its object (the authors' code)."""


def assign(boxes: Tensor, levels: Sequence[Tensor], candidates: int) -> Tensor:
    """Return the object (N,) int64 that each anchor is to find, or BACKGROUND.

    `boxes` (objects, 4) are the objects, `levels` the anchors (N_i, 4) of each level. An object's
    candidates are, of each level, those that are nearest to it. It is found by those with at least
    the mean of their IoUs and a standard deviation, and with a centre inside it. Where several
    objects claim an anchor, the one that it overlaps most has it.
    """
    anchors = torch.cat(list(levels))
    if len(boxes) == 0:
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    near = _nearest(boxes, levels, candidates)  # (objects, K)
    overlaps = box_iou(boxes, anchors)  # (objects, N)
    overlap = overlaps.gather(1, near)
    bound = overlap.mean(dim=1) + overlap.std(dim=1)
    is_positive = (overlap >= bound[:, None]) & _inside(centres(anchors)[near], boxes[:, None])
    claims = torch.full_like(overlaps, -1).scatter(1, near, torch.where(is_positive, overlap, -1))
    best, index = claims.max(dim=0)
    return torch.where(best >= 0, index, BACKGROUND)


def centres(boxes: Tensor) -> Tensor:
    """Return the centres (..., 2), x y, of boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _nearest(boxes: Tensor, levels: Sequence[Tensor], candidates: int) -> Tensor:
    """Return indices (objects, K) of the anchors nearest to each object: `candidates` a level."""
    near, first = [], 0
    for level in levels:
        apart = centres(boxes)[:, None] - centres(level)  # (objects, N_i, 2)
        distances = apart.square().sum(dim=-1)
        count = min(candidates, len(level))
        near.append(distances.topk(count, dim=1, largest=False).indices + first)
        first += len(level)
    return torch.cat(near, dim=1)


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Return which of `points` (..., 2) are inside `boxes` (..., 4): (...) bool."""
    room = torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)
    return room.amin(dim=-1) > MARGIN
