"""The objects of a batch as DINO counts them: boxes as fractions of the unpadded image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_convert

from smt.detection.boxes import extents
from smt.detection.structures import Target
from smt.detection.transfer import to_device


@dataclass(frozen=True)
class Objects:
    """The N objects of a batch, image by image."""

    labels: Tensor
    """(N,) int64."""
    boxes: Tensor
    """(N, 4): centre and sides, as fractions of the unpadded image."""
    image: Tensor
    """(N,) int64: the object's image in the batch."""
    number: Tensor
    """(N,) int64: which of its image's objects it is."""
    counts: list[int]
    """Objects of each image."""


def objects_of(targets: Sequence[Target]) -> Objects:
    """Return the objects of a batch."""
    device = targets[0].boxes.device
    counts = [len(target.labels) for target in targets]
    image = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)]).long()
    number = torch.tensor([i for count in counts for i in range(count)]).long()
    image, number = to_device(image, device), to_device(number, device)
    pixels = torch.cat([target.boxes for target in targets]).float()  # (N, 4)
    fractions = pixels / extents([target.size for target in targets], device)[image]
    return Objects(
        labels=torch.cat([target.labels for target in targets]),
        boxes=box_convert(fractions, "xyxy", "cxcywh"),
        image=image,
        number=number,
        counts=counts,
    )
