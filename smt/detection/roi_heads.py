"""What looks at pooled regions: the heads for classes, boxes and masks, and what they learn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from smt.config import heads
from smt.detection.boxes import decode, encode
from smt.detection.losses import giou_loss
from smt.detection.matching import Sample, match, sample
from smt.detection.structures import Target
from smt.models.sync_norm import SyncBatchNorm


class BoxHead(nn.Module):
    """Classes and boxes of pooled regions (mmdet's ConvFCBBoxHead).

    Convolutions start from He's normal distribution (by outputs), layers from Xavier's uniform one,
    the classifier from a normal of deviation 0.01, the regression from one of 0.001.
    """

    def __init__(
        self, spec: heads.BoxHead, *, channels: int, resolution: int, classes: int
    ) -> None:
        super().__init__()
        self.classes = classes
        self.convolutions = nn.Sequential()
        for _ in range(spec.convolutions):
            convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.convolutions.extend([convolution, SyncBatchNorm(channels), nn.ReLU(inplace=True)])
            _start_convolution(convolution)
        self.layers = nn.Sequential()
        inputs = channels * resolution**2
        for _ in range(spec.layers):
            self.layers.extend([nn.Linear(inputs, spec.width), nn.ReLU(inplace=True)])
            inputs = spec.width
        self.classifier = nn.Linear(inputs, classes + 1)  # the last is background
        self.regression = nn.Linear(inputs, 4 * classes)
        self._start()

    def _start(self) -> None:
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer, deviation in ((self.classifier, 0.01), (self.regression, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, classes + 1) and offsets (N, classes, 4) of (N, C, R, R)."""
        hidden = self.layers(self.convolutions(pooled).flatten(1))
        return self.classifier(hidden), self.regression(hidden).unflatten(1, (self.classes, 4))


class MaskHead(nn.Module):
    """Masks of pooled regions, one for each class (mmdet's FCNMaskHead), from He's distribution."""

    def __init__(self, spec: heads.MaskHead, *, channels: int, classes: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential()
        for _ in range(spec.convolutions):
            self.convolutions.extend(
                [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
            )
        self.upsample = nn.Sequential(
            nn.ConvTranspose2d(channels, channels, 2, 2), nn.ReLU(inplace=True)
        )
        self.masks = nn.Conv2d(channels, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                _start_convolution(module)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return logits (N, classes, 2R, 2R) of (N, C, R, R)."""
        logits: Tensor = self.masks(self.upsample(self.convolutions(pooled)))
        return logits


def _start_convolution(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@dataclass(frozen=True)
class Regions:
    """The boxes of one image that a stage learns from: those that find objects, then the rest."""

    boxes: Tensor
    """(R, 4)."""
    labels: Tensor
    """(R,) int64; the number of classes is background."""
    objects: Tensor
    """(P,) int64: what the first P boxes find."""
    is_ground_truth: Tensor
    """(R,) bool: boxes of the objects themselves, which no network proposed."""


@dataclass(frozen=True)
class Proposals:
    """The boxes of one image that a stage samples its regions from."""

    boxes: Tensor
    """(N, 4)."""
    usable: Tensor | None = None
    """(N,) bool: the others are no proposals. None: all are."""


def sample_regions(
    proposals: Sequence[Proposals],
    targets: Sequence[Target],
    matching: heads.Matching,
    sampling: heads.Sampling,
    classes: int,
) -> list[Regions]:
    """Sample each image's regions from its proposals and the boxes of its objects.

    The objects' own boxes join after the matching and find themselves (mmdet's
    add_gt_as_proposals).
    """
    matches = []
    for proposed, target in zip(proposals, targets, strict=True):
        found = match(box_iou(target.boxes, proposed.boxes), matching, proposed.usable)
        ground_truth = torch.arange(len(target.boxes), device=found.device)
        matches.append(torch.cat([ground_truth, found]))
    return [
        _regions(*of_image, classes)
        for of_image in zip(proposals, targets, matches, sample(matches, sampling), strict=True)
    ]


def _regions(
    proposals: Proposals, target: Target, matches: Tensor, sampled: Sample, classes: int
) -> Regions:
    """Return the sampled regions, from the `matches` of the objects' own boxes and proposals."""
    rows = torch.cat([sampled.positive, sampled.negative])
    objects = matches[sampled.positive]
    background = objects.new_full((len(sampled.negative),), classes)
    return Regions(
        boxes=torch.cat([target.boxes, proposals.boxes])[rows],
        labels=torch.cat([target.labels[objects], background]),
        objects=objects,
        is_ground_truth=rows < len(target.boxes),
    )


def positive_rows(regions: Sequence[Regions]) -> Tensor:
    """Return where (sum of P,) the regions that find objects are among those of all images."""
    rows, start = [], 0
    for region in regions:
        rows.append(torch.arange(len(region.objects), device=region.boxes.device) + start)
        start += len(region.boxes)
    return torch.cat(rows)


def box_losses(
    logits: Tensor,
    offsets: Tensor,
    regions: Sequence[Regions],
    targets: Sequence[Target],
    spec: heads.BoxHead,
    deviations: heads.Deviations,
) -> dict[str, Tensor]:
    """Return class and box: cross entropy of all regions, L1 or GIoU of those that find objects.

    `logits` (R, classes + 1) and `offsets` (R, classes, 4) are of all images. Both sums are divided
    by the number of all regions of the batch.
    """
    labels = torch.cat([region.labels for region in regions])
    rows = positive_rows(regions)
    class_offsets = offsets[rows, labels[rows]].float()  # (P, 4): of the object's class
    boxes = torch.cat([region.boxes for region in regions])[rows]
    objects = torch.cat(
        [target.boxes[region.objects] for target, region in zip(targets, regions, strict=True)]
    )
    if spec.loss == "l1":
        distance = F.l1_loss(class_offsets, encode(objects, boxes, deviations), reduction="sum")
    else:
        distance = giou_loss(decode(class_offsets, boxes, deviations), objects).sum()
    count = max(len(labels), 1)
    return {
        "class": F.cross_entropy(logits.float(), labels, reduction="sum") / count,
        "box": distance * spec.loss_weight / count,
    }
