"""Dense prediction: classes and a box at every anchor of five levels, as two detectors share it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smt.config.heads import Anchors, Selection
from smt.data.transforms.image import padded_size
from smt.detection.anchors import GridAnchors
from smt.detection.boxes import decode
from smt.detection.fpn import FeaturePyramid, flatten
from smt.detection.losses import start_at_prior
from smt.detection.matching import BACKGROUND, LEFT_OUT
from smt.detection.nms import suppress
from smt.detection.structures import Backbone, DetectionModel, Detections, Size, Target
from smt.models.profile import Calls

STRIDES = (8, 16, 32, 64, 128)
"""Of the levels: three of the backbone's and two coarser ones."""


@dataclass(frozen=True)
class Maps:
    """What a head predicts for a batch; each list has a map for every level, finest first.

    Channels run through the anchors A of a place, and through the values of each.
    """

    classes: list[Tensor]
    """Logits (B, A * classes, H_i, W_i)."""
    boxes: list[Tensor]
    """Offsets from the anchors (B, A * 4, H_i, W_i)."""
    centerness: list[Tensor] = field(default_factory=list)
    """Logits (B, A, H_i, W_i); none from a head without centerness."""


@dataclass(frozen=True)
class Predictions:
    """What a head predicts for one image; each list has the N_i anchors of every level."""

    anchors: list[Tensor]
    """Boxes (N_i, 4)."""
    logits: list[Tensor]
    """(N_i, classes)."""
    offsets: list[Tensor]
    """(N_i, 4)."""
    centerness: list[Tensor]
    """Logits (N_i,), or none."""


@dataclass(frozen=True)
class Assignment:
    """What the N predictions of a batch are to be: image by image, level by level."""

    labels: Tensor
    """(N,) int64: a class, the number of classes for background, -1 for what is left out."""
    positive: Tensor
    """(P,) int64: indices of the predictions that are to find an object."""
    anchors: Tensor
    """(P, 4), of those."""
    boxes: Tensor
    """(P, 4): the object that each is to find."""
    count: Tensor
    """Positives, where an image without any counts one: a scalar."""


class DenseDetector(DetectionModel):
    """A backbone, a pyramid on its last three levels, and a head that predicts at every anchor."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        pyramid: FeaturePyramid,
        head: nn.Module,
        anchors: Anchors,
        deviations: Sequence[float],
        classes: int,
        test: Selection,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.head = head
        self.anchors = GridAnchors(anchors, STRIDES)
        self.deviations = deviations
        self.classes = classes
        self.test = test

    def maps(self, images: Tensor) -> Maps:
        """Return what the head predicts for images (B, 3, H, W)."""
        maps: Maps = self.head(self.pyramid(self.backbone(images)[1:]))
        return maps

    def predictions(self, maps: Maps, sizes: Sequence[Size]) -> list[Predictions]:
        """Return what is predicted for each image of a batch, in float32.

        Only the part of the maps that an image would have by itself is its own: what the batch
        pads it with beyond that is neither trained on nor searched.
        """
        return [self._of_image(maps, index, size) for index, size in enumerate(sizes)]

    def _of_image(self, maps: Maps, index: int, size: Size) -> Predictions:
        grids = unpadded_grids(size)

        def rows(levels: Sequence[Tensor], values: int) -> list[Tensor]:
            own = [
                level[index : index + 1, :, :height, :width]
                for level, (height, width) in zip(levels, grids, strict=True)
            ]
            return [flatten([level], values)[0].float() for level in own]  # (N_i, values)

        return Predictions(
            anchors=self.anchors(grids),
            logits=rows(maps.classes, self.classes),
            offsets=rows(maps.boxes, 4),
            centerness=[x[:, 0] for x in rows(maps.centerness, 1)] if maps.centerness else [],
        )

    def predict(self, images: Tensor, sizes: list[Size]) -> list[Detections]:
        predictions = zip(self.predictions(self.maps(images), sizes), sizes, strict=True)
        return [
            detections(prediction, size, self.deviations, self.test)
            for prediction, size in predictions
        ]

    def calls(self, features: list[Tensor], size: Size) -> Calls:
        levels = self.pyramid(features[1:])
        return {
            "pyramid": [(self.pyramid, (features[1:],))],
            "head": [(self.head, (levels,))],
        }


def unpadded_grids(size: Size) -> list[tuple[int, int]]:
    """Return the rows and columns of each level, for an image of `size` that is padded alone."""
    height, width = padded_size(size)
    return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES]


def tower(channels: int, convolutions: int, groups: int | None = None) -> nn.Sequential:
    """Return 3 x 3 convolutions with ReLU; between the two GroupNorm, if `groups` are given."""
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=groups is None))
        if groups is not None:
            layers.append(nn.GroupNorm(groups, channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def initialise(head: nn.Module, classifier: nn.Conv2d) -> None:
    """Draw the convolutions of `head` from N(0, 0.01^2), and let `classifier` start at the prior.

    Biases are 0, the classifier's such that every class has the probability `PRIOR`.
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    start_at_prior(classifier.bias)


def concatenate_images(images: Iterable[list[Tensor]]) -> Tensor:
    """Return the values of all images and levels (N, ...), image by image, level by level."""
    return torch.cat([level for levels in images for level in levels])


def assignment(
    matches: Sequence[Tensor], anchors: Sequence[Tensor], targets: Sequence[Target], classes: int
) -> Assignment:
    """Return what predictions are to be, from the object that each anchor is to find.

    Of every image there are `matches` (N,), which name objects as `matching.match` does, and the
    `anchors` (N, 4).
    """
    labels, boxes = [], []
    for match, target in zip(matches, targets, strict=True):
        row = match.clamp(min=BACKGROUND)  # -1 is the row that is added at the end
        label = F.pad(target.labels, (0, 1), value=classes)[row]
        labels.append(torch.where(match == LEFT_OUT, -1, label))
        boxes.append(F.pad(target.boxes, (0, 0, 0, 1))[row])
    positive = (torch.cat(list(matches)) >= 0).nonzero()[:, 0]
    positives = torch.stack([(match >= 0).sum() for match in matches])
    return Assignment(
        labels=torch.cat(labels),
        positive=positive,
        anchors=torch.cat(list(anchors))[positive],
        boxes=torch.cat(boxes)[positive],
        count=positives.clamp(min=1).sum(),
    )


def detections(
    predictions: Predictions, size: Size, deviations: Sequence[float], rule: Selection
) -> Detections:
    """Return what stays of the predictions for an image of `size` (height, width), best first.

    A candidate is a class at an anchor: one anchor may give several. The `rule.before` best of each
    level are looked at, by the probability of the class; NMS then takes that times centerness.
    """
    scores, labels, anchors, offsets, factors = [], [], [], [], []
    for level, logits in enumerate(predictions.logits):
        pairs = logits.sigmoid().flatten()
        best, index = pairs.topk(min(rule.before, len(pairs)))
        row = index // logits.shape[1]
        scores.append(best)
        labels.append(index % logits.shape[1])
        anchors.append(predictions.anchors[level][row])
        offsets.append(predictions.offsets[level][row])
        if predictions.centerness:
            factors.append(predictions.centerness[level][row].sigmoid())
    score, label = torch.cat(scores), torch.cat(labels)
    looked_at = (score > rule.score).nonzero()[:, 0]
    if factors:
        score = score * torch.cat(factors)
    score, label = score[looked_at], label[looked_at]
    boxes = decode(torch.cat(offsets)[looked_at], torch.cat(anchors)[looked_at], deviations, size)
    selected = suppress(boxes, score, label, nms=rule.nms, keep=rule.keep)
    return Detections(boxes[selected], score[selected], label[selected])
