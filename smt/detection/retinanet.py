"""RetinaNet (Lin et al., 2017): focal loss on dense anchors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from smt.config import heads
from smt.detection.boxes import encode
from smt.detection.dense import (
    Assignment,
    DenseDetector,
    Maps,
    assignment,
    concatenate_images,
    initialise,
    tower,
)
from smt.detection.fpn import FeaturePyramid
from smt.detection.losses import focal_loss
from smt.detection.matching import match
from smt.detection.structures import Backbone, Target

DEVIATIONS = (1.0, 1.0, 1.0, 1.0)
"""Offsets are learned as they are."""


class RetinaNetHead(nn.Module):
    """One tower for classes and one for boxes, the same on every level."""

    def __init__(self, head: heads.RetinaNet, classes: int) -> None:
        super().__init__()
        anchors = len(head.anchors.scales) * len(head.anchors.ratios)
        self.class_tower = tower(head.channels, head.convolutions)
        self.box_tower = tower(head.channels, head.convolutions)
        self.classes = nn.Conv2d(head.channels, anchors * classes, 3, padding=1)
        self.boxes = nn.Conv2d(head.channels, anchors * 4, 3, padding=1)
        initialise(self, self.classes)

    def forward(self, levels: list[Tensor]) -> Maps:
        """Return predictions of `levels` (B, channels, H_i, W_i)."""
        return Maps(
            [self.classes(self.class_tower(level)) for level in levels],
            [self.boxes(self.box_tower(level)) for level in levels],
        )


class RetinaNetDetector(DenseDetector):
    """RetinaNet; its losses are `class` (focal) and `box` (L1 of offsets)."""

    def __init__(self, backbone: Backbone, *, head: heads.RetinaNet, classes: int) -> None:
        super().__init__(
            backbone,
            pyramid=FeaturePyramid(backbone.widths[1:], head.channels, "from_input"),
            head=RetinaNetHead(head, classes),
            anchors=head.anchors,
            deviations=DEVIATIONS,
            classes=classes,
            test=head.test,
        )
        self.spec = head

    def forward(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Return the losses, each divided by the positives of this process's batch."""
        predictions = self.predictions(self.maps(images), [target.size for target in targets])
        logits = concatenate_images(prediction.logits for prediction in predictions)  # (N, classes)
        offsets = concatenate_images(prediction.offsets for prediction in predictions)  # (N, 4)
        anchors = [torch.cat(prediction.anchors) for prediction in predictions]
        matches = [
            match(box_iou(target.boxes, image_anchors), self.spec.matching)
            for target, image_anchors in zip(targets, anchors, strict=True)
        ]
        assigned = assignment(matches, anchors, targets, self.classes)
        classes = focal_loss(
            logits, assigned.labels, alpha=self.spec.focal_alpha, gamma=self.spec.focal_gamma
        )
        boxes = self.box_loss(offsets[assigned.positive], assigned)
        return {"class": classes / assigned.count, "box": boxes / assigned.count}

    def box_loss(self, offsets: Tensor, assigned: Assignment) -> Tensor:
        """Return the loss of the positives' offsets (P, 4), as a sum."""
        aim = encode(assigned.boxes, assigned.anchors, self.deviations)  # (P, 4)
        return F.l1_loss(offsets, aim, reduction="sum")
