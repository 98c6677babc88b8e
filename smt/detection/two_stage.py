"""Mask R-CNN and Cascade Mask R-CNN: regions are proposed, then looked at in one stage or more."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smt.config import heads
from smt.detection.boxes import decode
from smt.detection.fpn import FeaturePyramid
from smt.detection.mask_loss import mask_loss, mask_targets, select_class
from smt.detection.nms import multiclass_nms
from smt.detection.pooling import by_image, pool
from smt.detection.roi_heads import (
    BoxHead,
    MaskHead,
    Proposals,
    Regions,
    box_losses,
    positive_rows,
    sample_regions,
)
from smt.detection.rpn import RegionProposalNetwork
from smt.detection.structures import Backbone, DetectionModel, Detections, Size, Target
from smt.models.profile import Calls

STRIDES = (4, 8, 16, 32, 64)
"""Of the pyramid's levels; regions are pooled from all but the last."""


class TwoStageDetector(DetectionModel):
    """Mask R-CNN (He et al., 2017), or with more stages Cascade R-CNN with masks (Cai, 2019).

    As mmdet 2.28 has both: a box for each class in every stage.
    """

    def __init__(self, backbone: Backbone, *, head: heads.TwoStage, classes: int) -> None:
        super().__init__()
        self.head = head
        self.classes = classes
        self.backbone = backbone
        self.neck = FeaturePyramid(backbone.widths, head.channels, "pool")
        self.rpn = RegionProposalNetwork(head.rpn, head.channels, STRIDES)
        self.box_heads = nn.ModuleList(
            BoxHead(head.box, channels=head.channels, resolution=head.resolution, classes=classes)
            for _ in head.stages
        )
        self.mask_heads = nn.ModuleList(
            MaskHead(head.mask, channels=head.channels, classes=classes) for _ in head.stages
        )

    def forward(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Return rpn_class, rpn_box, class, box, mask.

        With several stages the last three are those of each: stage0_class, ...; all are weighted.
        """
        levels = self.neck(self.backbone(images))
        predictions = self.rpn(levels)
        losses = self.rpn.losses(predictions, targets)
        sizes = [target.size for target in targets]
        proposed = self.rpn.propose(predictions, sizes, self.head.rpn.training)
        proposals = [Proposals(boxes) for boxes in proposed]
        for i in range(len(self.head.stages)):
            name = f"stage{i}_" if len(self.head.stages) > 1 else ""
            of_stage, proposals = self._learn(i, levels, proposals, targets)
            losses |= {f"{name}{loss}": value for loss, value in of_stage.items()}
        return losses

    def _learn(
        self, i: int, levels: list[Tensor], proposals: list[Proposals], targets: list[Target]
    ) -> tuple[dict[str, Tensor], list[Proposals]]:
        """Return the weighted losses of stage `i`, and the proposals for the next one, if any."""
        stage = self.head.stages[i]
        regions = sample_regions(
            proposals, targets, stage.matching, self.head.sampling, self.classes
        )
        logits, offsets = self._box_head_outputs(i, levels, [region.boxes for region in regions])
        losses = box_losses(logits, offsets, regions, targets, self.head.box, stage.deviations)
        losses["mask"] = self._mask_loss(i, levels, regions, targets)
        losses = {name: loss * stage.weight for name, loss in losses.items()}
        if i + 1 == len(self.head.stages):
            return losses, []
        return losses, self._refine_regions(i, logits.detach(), offsets.detach(), regions, targets)

    def _box_head_outputs(
        self, i: int, levels: list[Tensor], boxes: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return logits and offsets of stage `i` for the boxes of all images, one after another."""
        pooled = pool(levels[:-1], STRIDES[:-1], by_image(boxes), self.head.resolution)
        logits, offsets = self.box_heads[i](pooled)
        return logits, offsets

    def _mask_loss(
        self, i: int, levels: list[Tensor], regions: list[Regions], targets: list[Target]
    ) -> Tensor:
        positive_boxes = [region.boxes[: len(region.objects)] for region in regions]
        resolution = self.head.mask.resolution
        logits = self.mask_heads[i](
            pool(levels[:-1], STRIDES[:-1], by_image(positive_boxes), resolution)
        )
        goals = [
            mask_targets(_masks_of(target), region.objects, boxes, 2 * resolution)
            for target, region, boxes in zip(targets, regions, positive_boxes, strict=True)
        ]
        labels = torch.cat([region.labels for region in regions])[positive_rows(regions)]
        return mask_loss(logits, labels, torch.cat(goals))

    def _refine_regions(
        self,
        i: int,
        logits: Tensor,
        offsets: Tensor,
        regions: list[Regions],
        targets: list[Target],
    ) -> list[Proposals]:
        """Return the next stage's proposals of each image: its regions, refined by stage `i`.

        A region that finds an object moves as boxes of its class do, another as those of the class
        that is likeliest after background. Objects' own boxes are not usable.
        """
        labels = torch.cat([region.labels for region in regions])
        labels = torch.where(labels == self.classes, logits[:, :-1].argmax(dim=1), labels)
        refined = self._refine(
            i,
            labels,
            offsets,
            [region.boxes for region in regions],
            [target.size for target in targets],
        )
        return [
            Proposals(boxes, usable=~region.is_ground_truth)
            for boxes, region in zip(refined, regions, strict=True)
        ]

    def _refine(
        self,
        i: int,
        labels: Tensor,
        offsets: Tensor,
        boxes: Sequence[Tensor],
        sizes: Sequence[Size],
    ) -> list[Tensor]:
        """Return each image's boxes as stage `i` moves those of `labels`, cut to the image.

        What diverges to NaN becomes a box without an area, for losses to show it, not RoIAlign.
        """
        own = offsets[torch.arange(len(labels), device=labels.device), labels].float()
        deviations = self.head.stages[i].deviations
        return [
            decode(image_offsets, before, deviations, size).nan_to_num()
            for image_offsets, before, size in zip(
                own.split(_counts(boxes)), boxes, sizes, strict=True
            )
        ]

    def predict(self, images: Tensor, sizes: list[Size]) -> list[Detections]:
        """Return what is found in each image, with a mask for each box.

        Classes come from the mean of the stages' logits, boxes from the last stage, masks from the
        mean of the probabilities that the stages' mask heads give the final boxes.
        """
        levels = self.neck(self.backbone(images))
        proposals = self.rpn.propose(self.rpn(levels), sizes, self.head.rpn.test)
        detections = self._boxes(levels, proposals, sizes)
        masks = self._masks(
            levels,
            [detection.boxes for detection in detections],
            [detection.labels for detection in detections],
        )
        return [
            Detections(detection.boxes, detection.scores, detection.labels, mask)
            for detection, mask in zip(detections, masks, strict=True)
        ]

    def calls(self, features: list[Tensor], size: Size) -> Calls:
        levels, spec = self.neck(features), self.head
        regions, found = (
            levels[0].new_empty(number, spec.channels, side, side)
            for number, side in (
                (spec.rpn.test.keep, spec.resolution),
                (spec.test.keep, spec.mask.resolution),
            )
        )
        return {
            "neck": [(self.neck, (features,))],
            "rpn": [(self.rpn, (levels,))],
            "box_heads": [(head, (regions,)) for head in self.box_heads],
            "mask_heads": [(head, (found,)) for head in self.mask_heads],
        }

    def _boxes(
        self, levels: list[Tensor], boxes: list[Tensor], sizes: Sequence[Size]
    ) -> list[Detections]:
        """Return what the stages make of each image's proposals (N_i, 4), without masks."""
        logits, offsets = self._box_head_outputs(0, levels, boxes)
        total = logits.float()
        for i in range(1, len(self.head.stages)):
            likeliest = logits[:, :-1].argmax(dim=1)  # after background
            boxes = self._refine(i - 1, likeliest, offsets, boxes, sizes)
            logits, offsets = self._box_head_outputs(i, levels, boxes)
            total = total + logits.float()
        scores = (total / len(self.head.stages)).softmax(dim=1)[:, :-1]
        counts = _counts(boxes)
        return [
            self._select(*image_predictions)
            for image_predictions in zip(
                boxes, offsets.split(counts), scores.split(counts), sizes, strict=True
            )
        ]

    def _select(self, boxes: Tensor, offsets: Tensor, scores: Tensor, size: Size) -> Detections:
        """Return the best of an image's boxes (N, 4), as the last stage moves them."""
        deviations = self.head.stages[-1].deviations
        moved = decode(offsets.float(), boxes[:, None], deviations, size)  # (N, classes, 4)
        rule = self.head.test
        selected = multiclass_nms(moved, scores, score=rule.score, nms=rule.nms, keep=rule.keep)
        return Detections(*selected[:3])

    def _masks(
        self, levels: list[Tensor], boxes: list[Tensor], labels: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the probabilities (N_i, M, M) of each image's boxes for their `labels`."""
        pooled = pool(levels[:-1], STRIDES[:-1], by_image(boxes), self.head.mask.resolution)
        own = [
            select_class(mask_head(pooled), torch.cat(labels)).float()
            for mask_head in self.mask_heads
        ]
        scores: tuple[Tensor, ...] = torch.stack(own).sigmoid().mean(dim=0).split(_counts(boxes))
        return scores


def _masks_of(target: Target) -> Tensor:
    if target.masks is None:
        raise ValueError("a two-stage detector learns masks, but a target of the batch has none")
    return target.masks


def _counts(boxes: Sequence[Tensor]) -> list[int]:
    return [len(image_boxes) for image_boxes in boxes]
