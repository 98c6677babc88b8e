"""Non-maximum suppression (NMS): of boxes that find the same thing, the best stays."""

from torch import Tensor
from torchvision import ops

_AT_ONCE = {"cpu": 1_000, "cuda": 25_000}
"""Boxes up to which all groups are suppressed at once: torchvision's bounds."""


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, *, nms: float, keep: int) -> Tensor:
    """Return the indices of the at most `keep` boxes that survive, best first.

    A box (N, 4) goes where a better one of its own group (N,), a class or a level, overlaps it by
    an IoU above `nms`.
    """
    boxes, scores = boxes.float(), scores.float()
    indices: Tensor
    if 0 < len(boxes) <= _AT_ONCE[boxes.device.type]:
        # As batched_nms does it, which copies a constant to the GPU: groups are moved apart.
        apart = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
        indices = ops.nms(apart, scores, nms)
    else:
        indices = ops.batched_nms(boxes, scores, groups, nms)
    return indices[:keep]


def multiclass_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    score: float,
    nms: float,
    keep: int,
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return boxes (K, 4), scores, labels and rows (K,) of the predictions that are kept.

    `boxes` are (N, 4), or (N, classes, 4) with a box for each class, and `scores` (N, classes),
    without background. Only scores above `score` are looked at; after that they are multiplied by
    the `factors` (N,) of their rows. Each class is suppressed by itself, then the best `keep` of
    all classes stay, best first. The rows say where in `boxes` each came from.
    """
    rows, labels = (scores > score).nonzero(as_tuple=True)
    boxes = boxes[rows] if boxes.dim() == 2 else boxes[rows, labels]
    scores_above = scores[rows, labels].float()
    if factors is not None:
        scores_above = scores_above * factors[rows]
    best = suppress(boxes, scores_above, labels, nms=nms, keep=keep)
    return boxes[best], scores_above[best], labels[best], rows[best]
