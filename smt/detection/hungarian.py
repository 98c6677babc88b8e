"""Set matching: each object to one prediction, so that the sum of costs is the least (DETR)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from smt.config.heads import SetWeights
from smt.detection.structures import Target
from smt.detection.transfer import numbers_like, to_device

Coordinates = Literal["xyxy", "cxcywh"]
"""In which boxes are compared by L1: two corners (Sparse R-CNN), or centre and sides (DETR)."""
Pairs = tuple[Tensor, Tensor]
"""Indices (M,) int64 of predictions, ascending, and of the objects that they are to find."""


@torch.no_grad()
def costs(
    logits: Tensor,
    boxes: Tensor,
    target: Target,
    weights: SetWeights,
    *,
    alpha: float,
    gamma: float,
    coordinates: Coordinates,
) -> Tensor:
    """Return what it costs (Q, N) float32 to give each of Q predictions each of an image's objects.

    `logits` are (Q, C), `boxes` (Q, 4) x1 y1 x2 y2 in pixels. The cost is the weighted sum of the
    focal cost of the object's class, the L1 distance of boxes over the image's unpadded size, and
    GIoU with a minus. Weights, alpha and gamma are those of the matcher, not of the loss.
    """
    boxes, objects = boxes.float(), target.boxes.float()
    distance = torch.cdist(  # (Q, N)
        relative(boxes, target.size, coordinates), relative(objects, target.size, coordinates), p=1
    )
    classes = focal_cost(logits, target.labels, alpha=alpha, gamma=gamma)  # (Q, N)
    overlap = generalized_box_iou(boxes, objects)  # (Q, N)
    cost: Tensor = weights.classes * classes + weights.l1 * distance - weights.giou * overlap
    return cost


def focal_cost(logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Return the focal cost (Q, N) of finding `labels` (N,) by `logits` (Q, C).

    It is the focal loss of a class that is there less that of one that is not (Deformable DETR):
    what a prediction's loss changes by when it is given the object.
    """
    logits = logits.float()
    probability = logits.sigmoid()  # (Q, C)
    positive = alpha * (1 - probability) ** gamma * -F.logsigmoid(logits)
    absent = (1 - alpha) * probability**gamma * -F.logsigmoid(-logits)
    return (positive - absent)[:, labels]


def relative(boxes: Tensor, size: tuple[int, int], coordinates: Coordinates) -> Tensor:
    """Return boxes (N, 4) in pixels as fractions of `size` (height, width), in `coordinates`."""
    height, width = size
    fractions = boxes / numbers_like(boxes, [width, height, width, height])
    converted: Tensor = box_convert(fractions, "xyxy", coordinates)
    return converted


def match_all(cost_matrices: Sequence[Tensor]) -> list[Pairs]:
    """Return the pairs of every cost (Q_i, N_i): of images, of layers, or of both.

    A cost has min(Q_i, N_i) pairs, on its device. All costs go to the host in one copy and all
    pairs come back in one, so that a GPU is waited for once a call.

    A cost that is not finite counts as the least of all. Its prediction is therefore given an
    object, and the loss, made of the same numbers, is not finite either: what is to happen then is
    for the training loop to say, which looks at every loss.
    """
    shapes = [(cost.shape[0], cost.shape[1]) for cost in cost_matrices]
    host = torch.cat([cost.detach().flatten() for cost in cost_matrices]).cpu()
    indices = to_device(assign(host, shapes), cost_matrices[0].device)
    counts = [min(shape) for shape in shapes]
    return [(pair[0], pair[1]) for pair in indices.split(counts, dim=1)]


def assign(costs: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Return rows and columns (2, sum of min(Q_i, N_i)) of the cheapest pairs of each matrix.

    `costs` are the elements of all matrices (Q_i, N_i), one after the other, on the CPU.
    """
    ends = np.cumsum([queries * objects for queries, objects in shapes])
    parts = np.split(costs.double().numpy(), ends[:-1])
    solved = [
        linear_sum_assignment(_finite(part).reshape(shape))
        for part, shape in zip(parts, shapes, strict=True)
    ]
    return torch.from_numpy(np.concatenate(solved, axis=1))


def _finite(cost: np.ndarray) -> np.ndarray:
    """Return `cost` with a value below all others wherever it is not finite."""
    finite = np.isfinite(cost)
    if finite.all():
        return cost
    bound = float(np.abs(cost[finite]).max(initial=1.0))
    # One such pair outweighs any saving on all the others together.
    return np.where(finite, cost, -2.0 * bound * (cost.size + 1))
