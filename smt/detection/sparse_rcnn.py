"""Sparse R-CNN (Sun et al., CVPR 2021): a few learned proposals, refined in stages, no anchors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from smt.config.heads import SparseRCNN
from smt.detection.boxes import clip, decode, extents
from smt.detection.dynamic_head import DynamicHead
from smt.detection.fpn import FeaturePyramid
from smt.detection.hungarian import Pairs, costs, match_all
from smt.detection.losses import focal_loss, giou_loss
from smt.detection.normaliser import mean_over_ranks
from smt.detection.pooling import by_image, pool
from smt.detection.structures import Backbone, DetectionModel, Detections, Size, Target
from smt.models.profile import Calls

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Prediction:
    """What a stage makes of the proposals of a batch."""

    logits: Tensor
    """(B, P, classes)."""
    boxes: Tensor
    """(B, P, 4) float32 x1 y1 x2 y2 in pixels; they may reach over the image's edge."""


class SparseRCNNDetector(DetectionModel):
    """Learned boxes and features, the same for every image, that each stage brings nearer to it."""

    def __init__(self, backbone: Backbone, *, head: SparseRCNN, classes: int) -> None:
        super().__init__()
        self.head = head
        self.backbone = backbone
        self.pyramid = FeaturePyramid(backbone.widths, head.channels, extra=None)
        # Centre and sides as fractions of the image; every box starts as the whole of it.
        self.proposal_boxes = nn.Parameter(torch.tensor([[0.5, 0.5, 1, 1]] * head.proposals))
        self.proposal_features = nn.Parameter(torch.randn(head.proposals, head.channels))
        self.stages = nn.ModuleList(DynamicHead(head, classes) for _ in range(head.stages))

    def forward(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Return `stage<i>_class`, `stage<i>_box` and `stage<i>_giou` of every stage."""
        predictions = self._refine(images, [target.size for target in targets])
        pairs = match_all(
            [cost for prediction in predictions for cost in self._costs(prediction, targets)]
        )
        batch = len(targets)
        matches = sum(len(queries) for queries, _ in pairs[:batch])  # the same in every stage
        positives = mean_over_ranks(torch.full((), matches, device=images.device)).clamp(min=1)
        losses = {}
        for stage, prediction in enumerate(predictions):
            of_stage = pairs[stage * batch : (stage + 1) * batch]
            for name, loss in self._losses(prediction, of_stage, targets).items():
                losses[f"stage{stage}_{name}"] = loss / positives
        return losses

    def calls(self, features: list[Tensor], size: Size) -> Calls:
        spec, proposals = self.head, self.proposal_features[None]  # (1, P, C)
        side = spec.resolution
        regions = proposals.new_empty(spec.proposals, spec.channels, side, side)
        return {
            "pyramid": [(self.pyramid, (features,))],
            "stages": [(stage, (proposals, regions)) for stage in self.stages],
        }

    def predict(self, images: Tensor, sizes: list[Size]) -> list[Detections]:
        """Return the best pairs of proposal and class in each image, without any suppression."""
        last = self._refine(images, sizes)[-1]
        proposals, classes = last.logits.shape[1:]
        scores = last.logits.float().sigmoid().flatten(1)  # (B, P * classes)
        scores, indices = scores.topk(min(self.head.keep, proposals * classes))  # (B, keep)
        return [
            Detections(clip(boxes[index // classes], size), score, index % classes)
            for boxes, score, index, size in zip(last.boxes, scores, indices, sizes, strict=True)
        ]

    def _refine(self, images: Tensor, sizes: Sequence[Size]) -> list[Prediction]:
        """Return what each stage predicts."""
        levels = self.pyramid(self.backbone(images))
        pixels = extents(sizes, images.device)[:, None]  # (B, 1, 4)
        boxes = box_convert(self.proposal_boxes, "cxcywh", "xyxy") * pixels  # (B, P, 4)
        features = self.proposal_features.expand(len(images), -1, -1)  # (B, P, C)
        predictions = []
        for stage in self.stages:
            logits, offsets, features = stage(features, self._regions(levels, boxes.detach()))
            boxes = decode(offsets.float(), boxes, self.head.deviations)
            predictions.append(Prediction(logits, boxes))
            boxes = boxes.detach()  # a stage learns from its own step only
        return predictions

    def _regions(self, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Return what is seen in boxes (B, P, 4) of each image: (B * P, C, R, R)."""
        # At coordinates that are no numbers RoIAlign reads where it must not, and a box turned
        # inside out has no level. The loss sees `boxes` as they are.
        is_box = boxes.isfinite().all(-1) & (boxes[..., 2:] >= boxes[..., :2]).all(-1)
        clean_boxes = torch.where(is_box[..., None], boxes, 0)  # (B, P, 4)
        head = self.head
        return pool(
            levels, STRIDES, by_image(list(clean_boxes)), head.resolution, head.sampling_ratio
        )

    def _costs(self, prediction: Prediction, targets: Sequence[Target]) -> list[Tensor]:
        """Return what pairing proposals with objects costs in each image (P, N_i)."""
        return [
            costs(
                logits,
                boxes,
                target,
                self.head.cost,
                alpha=self.head.focal_alpha,
                gamma=self.head.focal_gamma,
                coordinates="xyxy",
            )
            for logits, boxes, target in zip(
                prediction.logits, prediction.boxes, targets, strict=True
            )
        ]

    def _losses(
        self, prediction: Prediction, pairs: Sequence[Pairs], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return a stage's weighted losses, summed over the batch."""
        head = self.head
        logits, boxes = prediction.logits.flatten(0, 1), prediction.boxes.flatten(0, 1)
        rows = torch.cat(  # (M,), among the proposals of the whole batch
            [queries + i * head.proposals for i, (queries, _) in enumerate(pairs)]
        )
        matches = list(zip(targets, (objects for _, objects in pairs), strict=True))
        objects = torch.cat([target.boxes[index] for target, index in matches])  # (M, 4)
        labels = torch.full((len(logits),), logits.shape[1], device=logits.device)
        labels[rows] = torch.cat([target.labels[index] for target, index in matches])
        pixels = extents([target.size for target in targets], boxes.device)  # (B, 4)
        pixels = pixels.repeat_interleave(head.proposals, dim=0)[rows]  # (M, 4)
        classes = focal_loss(logits, labels, alpha=head.focal_alpha, gamma=head.focal_gamma)
        distance = ((boxes[rows] - objects) / pixels).abs().sum()
        overlap = giou_loss(boxes[rows], objects).sum()
        # Boxes without an object have a gradient all the same, and what is not finite shows.
        nothing = 0 * boxes.sum()
        return {
            "class": head.loss.classes * classes,
            "box": head.loss.l1 * distance + nothing,
            "giou": head.loss.giou * overlap,
        }
