"""Contrastive denoising (DINO, section 3.3): noised objects that the decoder is to tell apart.

Every object of an image is asked for in each of several groups by two queries: a positive one,
whose box lies near the object and which is to give the object back, and a negative one, whose box
lies further off and which is to find nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_convert

from smt.config.heads import Denoising
from smt.detection.dino_objects import Objects


@dataclass(frozen=True)
class DenoisingQueries:
    """Denoising queries of a batch, D an image: by group, positive and negative, object.

    Images with fewer objects than the fullest have queries too many: `filled` tells which count.
    """

    labels: Tensor
    """(B, D) int64, some of them wrong."""
    boxes: Tensor
    """(B, D, 4): centre and sides, as fractions of the unpadded image, noised."""
    filled: Tensor
    """(B, D) bool."""
    positive: Tensor
    """(groups, N) int64: the positive query of each object in each group, counted over B * D."""
    groups: int

    @property
    def queries(self) -> int:
        """D, of an image."""
        return self.labels.shape[1]


def denoising_queries(objects: Objects, noise: Denoising, classes: int) -> DenoisingQueries:
    """Return `objects` with noise, in as many groups as fit about `noise.queries` objects.

    Random numbers come from the global generator of the objects' device. No objects give no
    queries.
    """
    images, most = len(objects.counts), max(objects.counts)
    groups = max(1, noise.queries // max(1, most))
    spread = (images, groups, 2, most)
    place = objects.image * most + objects.number  # (N,), among B * most

    def padded(values: Tensor) -> Tensor:
        """Return (B, groups, 2, most, ...) of (N, ...), zeros where there is no object."""
        rows = values.new_zeros(images * most, *values.shape[1:]).index_copy(0, place, values)
        rows = rows.view(images, 1, 1, most, *values.shape[1:])
        return rows.expand(*spread, *values.shape[1:])

    labels = _noise_labels(padded(objects.labels), noise.label_noise, classes)
    boxes = _noise_boxes(padded(objects.boxes), noise.box_noise)
    filled = padded(torch.ones_like(objects.labels, dtype=torch.bool))
    first = torch.arange(groups, device=place.device)[:, None] * (2 * most)  # of each group
    return DenoisingQueries(
        labels=labels.flatten(1),
        boxes=boxes.flatten(1, 3),
        filled=filled.flatten(1),
        positive=objects.image * (groups * 2 * most) + first + objects.number,
        groups=groups,
    )


def _noise_labels(labels: Tensor, noise: float, classes: int) -> Tensor:
    """Return labels of which half of `noise` are replaced by random classes."""
    redrawn = torch.rand(labels.shape, device=labels.device) < noise / 2
    return torch.where(redrawn, torch.randint_like(labels, classes), labels)


def _noise_boxes(boxes: Tensor, noise: float) -> Tensor:
    """Return boxes (B, groups, 2, M, 4) whose corners have moved, cut to the image.

    Each coordinate of a corner moves to either side, by up to half of the box's side times `noise`
    for a positive query and by one to two times that for a negative.
    """
    half = torch.cat([boxes[..., 2:], boxes[..., 2:]], dim=-1) / 2
    amount = torch.rand_like(half)  # (B, groups, 2, M, 4)
    amount[:, :, 1] += 1
    sign = torch.randint_like(half, 2) * 2 - 1
    corners = box_convert(boxes, "cxcywh", "xyxy") + sign * amount * half * noise
    # Corners may have changed places; the side is then negative, and none once it is a logit.
    moved: Tensor = box_convert(corners.clamp(0, 1), "xyxy", "cxcywh")
    return moved


def attention_mask(denoising: DenoisingQueries, queries: int) -> Tensor:
    """Return what must not attend to what: (D + Q, D + Q) bool, rows attending to columns.

    Denoising queries see their own group and the Q others; those see no denoising query, for it
    would tell them where the objects are.
    """
    device, of_group = denoising.labels.device, denoising.queries // denoising.groups
    group = torch.arange(denoising.groups, device=device).repeat_interleave(of_group)
    group = torch.cat([group, group.new_full((queries,), denoising.groups)])
    return (group[:, None] != group) & (group < denoising.groups)
