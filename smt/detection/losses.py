"""Losses that several detectors share; whoever calls them says what their sums are divided by."""

import math

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

PRIOR = 0.01
"""Probability of each class before training (Lin et al., 2017, section 4.1)."""
SMALLEST_AREA = 1e-7
"""Areas below it are taken for it, so that boxes without an area divide nothing by zero."""


def start_at_prior(bias: Tensor | None) -> None:
    """Fill a classifier's bias, so that every class starts with the probability `PRIOR`."""
    assert bias is not None
    nn.init.constant_(bias, -math.log((1 - PRIOR) / PRIOR))


def focal_loss(logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Return the focal loss (Lin et al., 2017) of predictions, summed over all: a scalar.

    Each class of `logits` (N, C) is a yes or no of its own; `labels` (N,) int64 name the class
    that is there, C none of them. A prediction with a negative label is left out. It is computed in
    float32 at least.
    """
    logits = _precise(logits)
    classes = torch.arange(logits.shape[1], device=logits.device)
    positive = (labels[:, None] == classes).to(logits.dtype)  # (N, C)
    losses = sigmoid_focal_loss(logits, positive, alpha=alpha, gamma=gamma).sum(dim=1)  # (N,)
    return torch.where(labels >= 0, losses, 0).sum()


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - GIoU (Rezatofighi et al., 2019) of boxes (N, 4) and their targets: (N,), 0 to 2.

    It is computed in float32 at least, and without waiting for the device, unlike torchvision's.
    """
    boxes, targets = _precise(boxes), _precise(targets)
    overlap = _area(
        torch.maximum(boxes[:, :2], targets[:, :2]), torch.minimum(boxes[:, 2:], targets[:, 2:])
    )
    hull = _area(
        torch.minimum(boxes[:, :2], targets[:, :2]), torch.maximum(boxes[:, 2:], targets[:, 2:])
    ).clamp(min=SMALLEST_AREA)
    union = _area(boxes[:, :2], boxes[:, 2:]) + _area(targets[:, :2], targets[:, 2:]) - overlap
    union = union.clamp(min=SMALLEST_AREA)
    return 1 - overlap / union + (hull - union) / hull


def _area(corner: Tensor, opposite: Tensor) -> Tensor:
    """Return areas (N,) of boxes from `corner` (N, 2) to `opposite`; none where they cross."""
    width, height = (opposite - corner).clamp(min=0).unbind(-1)
    return width * height


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
