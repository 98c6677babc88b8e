"""Which object each anchor or proposal is to find, and of which of them a loss is taken."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smt.config.heads import Matching, Sampling
from smt.detection.transfer import true_indices

BACKGROUND = -1
LEFT_OUT = -2


def match(overlaps: Tensor, rule: Matching, usable: Tensor | None = None) -> Tensor:
    """Return the object (boxes,) int64 that each box is to find, or BACKGROUND, or LEFT_OUT.

    `overlaps` are IoU (objects, boxes). A box takes the object that it overlaps most, if by enough.
    With the rule for low quality, an object also takes every box that overlaps it as much as its
    best one does; where two objects claim a box so, the later has it. All as mmdet's
    MaxIoUAssigner, but that an object which no box touches takes none (there, with a bound of 0, it
    would take all). With `usable` (boxes,) bool the other boxes are left out, and are no object's
    best one either.
    """
    if usable is not None:
        matches = match(torch.where(usable, overlaps, -1.0), rule)
        return torch.where(usable, matches, LEFT_OUT)
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


def sample(matches: Sequence[Tensor], sampling: Sampling) -> list[Sample]:
    """Sample boxes of each image from their `matches` (boxes,): positives, then background.

    Positives are sampled up to their part. Background fills what they leave, so that both are
    `sampling.boxes` where there are enough.
    """
    indices = true_indices(
        [each >= 0 for each in matches] + [each == BACKGROUND for each in matches]
    )
    samples = []
    for positives, negatives in zip(indices[: len(matches)], indices[len(matches) :], strict=True):
        positive = _random_subset(positives, int(sampling.boxes * sampling.positive))
        negative = _random_subset(negatives, sampling.boxes - len(positive))
        samples.append(Sample(positive, negative))
    return samples


def _random_subset(indices: Tensor, count: int) -> Tensor:
    """Return `count` of `indices`, at random without replacement; all in their order if too few."""
    if len(indices) <= count:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]
