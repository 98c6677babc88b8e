"""Which object each anchor or proposal is to find, and of which of them a loss is taken."""

from dataclasses import dataclass

import torch
from torch import Tensor

from smt.config.heads import Matching, Sampling

BACKGROUND = -1
LEFT_OUT = -2


def match(overlaps: Tensor, rule: Matching) -> Tensor:
    """Return the object (boxes,) int64 that each box is to find, or BACKGROUND, or LEFT_OUT.

    `overlaps` are IoU (objects, boxes). A box takes the object that it overlaps most, if by enough.
    With the rule for low quality, an object also takes every box that overlaps it as much as its
    best one does; where two objects claim a box so, the later has it. All as mmdet's
    MaxIoUAssigner, but that an object which no box touches takes none (there, with a bound of 0, it
    would take all).
    """
    objects, boxes = overlaps.shape
    if objects == 0:
        return torch.full((boxes,), BACKGROUND, device=overlaps.device)
    if boxes == 0:
        return torch.empty(0, dtype=torch.int64, device=overlaps.device)
    best, matches = overlaps.max(dim=0)
    matches = torch.where(
        best >= rule.positive,
        matches,
        torch.where(best < rule.negative, BACKGROUND, LEFT_OUT),
    )
    if rule.low_quality is None:
        return matches
    claimed = _claimed(overlaps, rule.low_quality)
    return torch.where(claimed >= 0, claimed, matches)


def _claimed(overlaps: Tensor, least: float) -> Tensor:
    """Return the last object (boxes,) whose best overlap is that of the box, or -1."""
    best = overlaps.amax(dim=1, keepdim=True)
    is_best = (overlaps == best) & (best >= least) & (best > 0)
    index = torch.arange(len(overlaps), device=overlaps.device)[:, None]
    return torch.where(is_best, index, -1).amax(dim=0)


@dataclass(frozen=True)
class Sample:
    """Indices of the boxes that a loss is taken of."""

    positive: Tensor
    """(P,) int64: boxes that are to find an object."""
    negative: Tensor
    """(Q,) int64: boxes on background."""


def sample(matches: Tensor, sampling: Sampling) -> Sample:
    """Sample boxes from their `matches` (boxes,): positives up to their part, then background.

    Background fills what positives leave, so that they are `sampling.boxes` where there are enough.
    """
    positive = _random_subset(
        (matches >= 0).nonzero()[:, 0], int(sampling.boxes * sampling.positive)
    )
    negative = _random_subset(
        (matches == BACKGROUND).nonzero()[:, 0], sampling.boxes - len(positive)
    )
    return Sample(positive, negative)


def _random_subset(indices: Tensor, count: int) -> Tensor:
    """Return `count` of `indices`, at random without replacement; all in their order if too few."""
    if len(indices) <= count:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]
