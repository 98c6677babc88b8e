"""ATSS (Zhang et al., 2020): one anchor at each place, assigned by an object's candidates."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smt.config import heads
from smt.config.heads import Anchors
from smt.detection.atss_assigner import assign, centres
from smt.detection.boxes import decode
from smt.detection.dense import (
    STRIDES,
    DenseDetector,
    Maps,
    assignment,
    concatenate_images,
    initialise,
    tower,
)
from smt.detection.fpn import FeaturePyramid
from smt.detection.losses import focal_loss, giou_loss
from smt.detection.normaliser import mean_over_ranks
from smt.detection.structures import Backbone, Target


class ATSSHead(nn.Module):
    """One tower for classes and one for boxes and centerness, the same on every level.

    A level has a factor of its own for the offsets of boxes.
    """

    def __init__(self, head: heads.ATSS, classes: int) -> None:
        super().__init__()
        self.class_tower = tower(head.channels, head.convolutions, head.groups)
        self.box_tower = tower(head.channels, head.convolutions, head.groups)
        self.classes = nn.Conv2d(head.channels, classes, 3, padding=1)
        self.boxes = nn.Conv2d(head.channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(head.channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))
        initialise(self, self.classes)

    def forward(self, levels: list[Tensor]) -> Maps:
        """Return predictions of `levels` (B, channels, H_i, W_i)."""
        features = [self.box_tower(level) for level in levels]
        return Maps(
            [self.classes(self.class_tower(level)) for level in levels],
            [self.boxes(x) * scale for x, scale in zip(features, self.scales, strict=True)],
            [self.centerness(x) for x in features],
        )


class ATSSDetector(DenseDetector):
    """ATSS; its losses are `class` (focal), `box` (GIoU) and `centerness` (cross entropy)."""

    def __init__(self, backbone: Backbone, *, head: heads.ATSS, classes: int) -> None:
        super().__init__(
            backbone,
            pyramid=FeaturePyramid(backbone.widths[1:], head.channels, "from_output"),
            head=ATSSHead(head, classes),
            anchors=Anchors(scales=(head.anchor_scale,), ratios=(1.0,)),
            deviations=head.deviations,
            classes=classes,
            test=head.test,
        )
        self.spec = head

    def forward(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Return the losses, divided by positives or their centerness, as means over processes."""
        predictions = self.predictions(self.maps(images), [target.size for target in targets])
        logits = concatenate_images(prediction.logits for prediction in predictions)  # (N, classes)
        offsets = concatenate_images(prediction.offsets for prediction in predictions)  # (N, 4)
        central = concatenate_images(prediction.centerness for prediction in predictions)  # (N,)
        matches = [
            assign(target.boxes, prediction.anchors, self.spec.candidates)
            for target, prediction in zip(targets, predictions, strict=True)
        ]
        anchors = [torch.cat(prediction.anchors) for prediction in predictions]
        assigned = assignment(matches, anchors, targets, self.classes)
        positives = mean_over_ranks(assigned.count)
        aim = centerness(assigned.anchors, assigned.boxes)  # (P,)
        classes = focal_loss(
            logits, assigned.labels, alpha=self.spec.focal_alpha, gamma=self.spec.focal_gamma
        )
        decoded = decode(offsets[assigned.positive], assigned.anchors, self.deviations)
        boxes = (giou_loss(decoded, assigned.boxes) * aim).sum()
        boxes = boxes / mean_over_ranks(aim.sum()).clamp(min=1)
        central = F.binary_cross_entropy_with_logits(
            central[assigned.positive], aim, reduction="sum"
        )
        return {
            "class": classes / positives,
            "box": self.spec.box_weight * boxes,
            "centerness": self.spec.centerness_weight * central / positives,
        }


def centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Return how central the centres of `anchors` (N, 4) are in `boxes` (N, 4): (N,), 1 at most.

    It is the root of the product, over both axes, of the nearer edge's distance over the farther's
    (FCOS, equation 3), for centres inside.
    """
    points = centres(anchors)
    before, after = points - boxes[:, :2], boxes[:, 2:] - points  # (N, 2)
    ratios = torch.minimum(before, after) / torch.maximum(before, after)
    return ratios.prod(dim=1).sqrt()
