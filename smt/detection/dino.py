"""DINO with four levels (Zhang et al., 2022), after its reference implementation."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from smt.config.heads import DINO
from smt.detection.boxes import clip, extents
from smt.detection.denoising import DenoisingQueries, attention_mask, denoising_queries
from smt.detection.dino_neck import Levels, Neck, levels_of
from smt.detection.dino_objects import Objects, objects_of
from smt.detection.dino_transformer import Predictions, Queries, Transformer, logit
from smt.detection.hungarian import Pairs, costs, match_all
from smt.detection.losses import focal_loss, giou_loss
from smt.detection.normaliser import mean_over_ranks
from smt.detection.structures import Backbone, DetectionModel, Detections, Size, Target
from smt.models.profile import Calls

MatchedRows = tuple[Tensor, Tensor]
"""Which predictions, all layers and images counted through, are to find which objects of a batch:
two (M,) int64."""


class DINODetector(DetectionModel):
    """DINO on the levels at strides 8, 16 and 32 of `backbone` and on one at 64."""

    def __init__(self, backbone: Backbone, *, head: DINO, classes: int) -> None:
        super().__init__()
        self.head, self.classes = head, classes
        self.backbone = backbone
        self.neck = Neck(backbone.widths[1:], head.channels)
        self.transformer = Transformer(head, classes)
        # One more than there are classes, as in the reference, where nothing ever asks for it.
        self.label_embedding = nn.Embedding(classes + 1, head.channels)

    def forward(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Return the losses of a batch, weighted: classes, L1 and GIoU of boxes.

        Each is that of the selection of queries, or the sum over decoder layers of the selected
        queries or of the denoising queries.
        """
        objects = objects_of(targets)
        denoising = denoising_queries(objects, self.head.denoising, self.classes)
        levels = self._levels(images, [target.size for target in targets])
        selected, decoded = self.transformer(levels, *self._denoising(denoising, levels))
        denoised, predicted = _split(decoded, denoising.queries)
        pairs = self._match([selected, predicted], targets)
        number = mean_over_ranks(objects.labels.new_full((), len(objects.labels))).clamp(min=1)
        losses = {}
        for name, predictions, assigned, normaliser in (
            ("selection", selected, _matched(pairs[: len(targets)], objects, selected), number),
            ("decoder", predicted, _matched(pairs[len(targets) :], objects, predicted), number),
            ("denoising", denoised, _positive(denoising, denoised), number * denoising.groups),
        ):
            for kind, loss in self._set_losses(predictions, assigned, objects).items():
                losses[f"{name}_{kind}"] = loss / normaliser
        return losses

    def predict(self, images: Tensor, sizes: list[Size]) -> list[Detections]:
        """Return the surest (query, class) pairs of each image: a box may have several classes."""
        _, decoded = self.transformer(self._levels(images, sizes))
        scores = decoded.logits[-1].float().sigmoid().flatten(1)  # (B, Q * classes)
        scores, indices = scores.topk(min(self.head.keep, scores.shape[1]), dim=1)
        queries, labels = indices // self.classes, indices % self.classes  # (B, keep) each
        boxes = decoded.boxes[-1].gather(1, queries[..., None].expand(-1, -1, 4))
        boxes = box_convert(boxes, "cxcywh", "xyxy") * extents(sizes, images.device)[:, None]
        return [
            Detections(boxes=clip(boxes[i], size), scores=scores[i], labels=labels[i])
            for i, size in enumerate(sizes)
        ]

    def calls(self, features: list[Tensor], size: Size) -> Calls:
        levels = levels_of(self.neck(features[1:]), size, [size])
        return {
            "neck": [(self.neck, (features[1:],))],
            "transformer": [(self.transformer, (levels,))],
        }

    def _levels(self, images: Tensor, sizes: Sequence[Size]) -> Levels:
        maps = self.neck(self.backbone(images)[1:])
        return levels_of(maps, (images.shape[-2], images.shape[-1]), sizes)

    def _denoising(self, denoising: DenoisingQueries, levels: Levels) -> tuple[Queries, Tensor]:
        """Return the denoising queries, with zeros in slots too many, and the attention mask."""
        empty = ~denoising.filled[..., None]
        queries = Queries(
            content=self.label_embedding(denoising.labels).masked_fill(empty, 0),
            boxes=logit(denoising.boxes).masked_fill(empty, 0),
        )
        return queries, attention_mask(denoising, self.transformer.selection.queries(levels))

    @torch.no_grad()
    def _match(
        self, layer_predictions: Sequence[Predictions], targets: Sequence[Target]
    ) -> list[Pairs]:
        """Return the pairs of every layer's every image, layer by layer."""
        logits = torch.cat(
            [predictions.logits for predictions in layer_predictions]
        )  # (layers, B, Q, classes)
        boxes = torch.cat([predictions.boxes for predictions in layer_predictions])
        pixels = extents([target.size for target in targets], boxes.device)
        boxes = box_convert(boxes, "cxcywh", "xyxy") * pixels[:, None]
        of_images = [
            costs(
                logits[:, i].flatten(0, 1),
                boxes[:, i].flatten(0, 1),
                target,
                self.head.cost,
                alpha=self.head.focal_alpha,
                gamma=self.head.focal_gamma,
                coordinates="cxcywh",
            ).split(logits.shape[2])  # (Q, N) of each layer
            for i, target in enumerate(targets)
        ]
        return match_all([cost for of_layer in zip(*of_images, strict=True) for cost in of_layer])

    def _set_losses(
        self, predictions: Predictions, assigned: MatchedRows, objects: Objects
    ) -> dict[str, Tensor]:
        """Return the weighted losses, summed over layers, images and queries."""
        logits = predictions.logits.flatten(0, 2)  # (layers * B * Q, classes)
        boxes = predictions.boxes.flatten(0, 2)
        rows, object_rows = assigned
        labels = torch.full_like(logits[:, 0], self.classes, dtype=torch.long)
        labels = labels.index_copy(0, rows, objects.labels[object_rows])
        boxes, object_boxes = boxes[rows], objects.boxes[object_rows]  # (M, 4)
        giou = giou_loss(
            box_convert(boxes, "cxcywh", "xyxy"), box_convert(object_boxes, "cxcywh", "xyxy")
        )
        weights = self.head.loss
        return {
            "classes": weights.classes
            * focal_loss(logits, labels, alpha=self.head.focal_alpha, gamma=self.head.focal_gamma),
            "l1": weights.l1 * F.l1_loss(boxes, object_boxes, reduction="sum"),
            "giou": weights.giou * giou.sum(),
        }


def _split(predictions: Predictions, queries: int) -> tuple[Predictions, Predictions]:
    """Return what the first `queries` say, and what the others say."""
    logits, boxes = predictions.logits, predictions.boxes
    return (
        Predictions(logits[:, :, :queries], boxes[:, :, :queries]),
        Predictions(logits[:, :, queries:], boxes[:, :, queries:]),
    )


def _matched(pairs: Sequence[Pairs], objects: Objects, predictions: Predictions) -> MatchedRows:
    """Return which predictions are to find which objects, by the pairs of each layer and image."""
    images, queries = predictions.logits.shape[1:3]
    firsts = [sum(objects.counts[:i]) for i in range(images)]  # of each image's objects
    rows = [row + i * queries for i, (row, _) in enumerate(pairs)]
    object_rows = [column + firsts[i % images] for i, (_, column) in enumerate(pairs)]
    return torch.cat(rows), torch.cat(object_rows)


def _positive(denoising: DenoisingQueries, predictions: Predictions) -> MatchedRows:
    """Return the same of denoising queries: in every layer and group each object's positive one."""
    layers, images, queries = predictions.logits.shape[:3]
    layer = torch.arange(layers, device=denoising.positive.device)[:, None, None]
    rows = denoising.positive + layer * (images * queries)  # (layers, groups, N)
    object_rows = torch.arange(rows.shape[-1], device=rows.device).expand_as(rows)
    return rows.flatten(), object_rows.flatten()
