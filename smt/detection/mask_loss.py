"""What a mask head learns: objects' masks on the grids of the boxes that found them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from smt.detection.roi_align import roi_align

THRESHOLD = 0.5
"""Cells that the object covers by at least this much belong to it (mmdet's mask targets)."""


def mask_targets(masks: Tensor, objects: Tensor, boxes: Tensor, resolution: int) -> Tensor:
    """Return target masks (P, resolution, resolution), float32, 1 on the object and 0 elsewhere.

    `masks` are those of an image's objects (N, height, width), bool; `objects` (P,) int64 says
    which of them each of `boxes` (P, 4) is to predict. Masks are cut out as features are, by
    aligned RoIAlign.
    """
    regions = torch.cat([objects[:, None].to(boxes.dtype), boxes], dim=1)
    covered = roi_align(masks[:, None].to(boxes.dtype), regions, resolution)
    return (covered[:, 0] >= THRESHOLD).float()


def mask_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of all cells, each a yes or no; zero of no masks.

    Of `logits` (P, classes, M, M) only the mask of the object's own class `labels` (P,) counts.
    """
    own = select_class(logits, labels).float()
    if len(own) == 0:
        return own.sum()
    return F.binary_cross_entropy_with_logits(own, targets)


def select_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the masks (P, M, M) that `logits` (P, classes, M, M) have for `labels` (P,)."""
    return logits[torch.arange(len(labels), device=labels.device), labels]
