"""The region proposal network (RPN): boxes that may hold an object, of whatever class."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from smt.config import heads
from smt.data.transforms.image import padded_size
from smt.detection.anchors import GridAnchors
from smt.detection.boxes import clip, decode, encode
from smt.detection.fpn import flatten
from smt.detection.matching import match, sample
from smt.detection.nms import suppress
from smt.detection.structures import Size, Target
from smt.detection.transfer import true_indices


@dataclass(frozen=True)
class Predictions:
    """What the network says of each anchor; in the order of anchors."""

    objectness: Tensor
    """(B, anchors): logits."""
    offsets: Tensor
    """(B, anchors, 4)."""
    anchors: Tensor
    """(anchors, 4)."""
    counts: list[int]
    """Anchors of each level."""


class RegionProposalNetwork(nn.Module):
    """A convolution and two predictors that all levels share (Ren et al., 2015), as in mmdet 2.28.

    All weights start from a normal distribution of deviation 0.01, all biases from zero.
    """

    def __init__(self, spec: heads.RPN, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.spec = spec
        self.anchors = GridAnchors(spec.anchors, strides)
        anchors = len(spec.anchors.scales) * len(spec.anchors.ratios)
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.offsets = nn.Conv2d(channels, 4 * anchors, 1)
        for layer in (self.convolution, self.objectness, self.offsets):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, levels: Sequence[Tensor]) -> Predictions:
        """Return objectness and offsets of the anchors of all levels (B, channels, H_i, W_i)."""
        # A function, not a layer: counts of published sizes do not see this ReLU.
        hidden = [F.relu(self.convolution(level)) for level in levels]
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        anchors = self.anchors(shapes)
        return Predictions(
            objectness=flatten([self.objectness(x) for x in hidden], 1)[..., 0],
            offsets=flatten([self.offsets(x) for x in hidden], 4),
            anchors=torch.cat(anchors),
            counts=[len(level_anchors) for level_anchors in anchors],
        )

    def losses(self, predictions: Predictions, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return rpn_class and rpn_box: cross entropy of sampled anchors, L1 of positive offsets.

        Both are sums over the batch, over the number of sampled anchors. An image without a
        positive one, or without background, counts one for it all the same, as in mmdet.
        """
        logits, labels, offsets, target_offsets, count = [], [], [], [], 0
        matches = [self.matches(predictions.anchors, target) for target in targets]
        for i, sampled in enumerate(sample(matches, self.spec.sampling)):
            for rows, label in ((sampled.positive, 1.0), (sampled.negative, 0.0)):
                logits.append(predictions.objectness[i, rows].float())
                labels.append(torch.full_like(logits[-1], label))
                count += max(len(rows), 1)
            anchors = predictions.anchors[sampled.positive]
            objects = targets[i].boxes[matches[i][sampled.positive]]
            offsets.append(predictions.offsets[i, sampled.positive].float())
            target_offsets.append(encode(objects, anchors, self.spec.deviations))
        objectness = F.binary_cross_entropy_with_logits(
            torch.cat(logits), torch.cat(labels), reduction="sum"
        )
        distance = F.smooth_l1_loss(
            torch.cat(offsets),
            torch.cat(target_offsets),
            reduction="sum",
            beta=self.spec.smooth_l1 or 0.0,  # 0 is L1
        )
        return {"rpn_class": objectness / count, "rpn_box": distance / count}

    def matches(self, anchors: Tensor, target: Target) -> Tensor:
        """Return the object (anchors,) that each anchor is to find, or what `match` says else.

        Anchors of places that the image would not have alone are left out; so are, where the head
        says so, all that are not inside the image.
        """
        used = _unpadded(anchors, target.size)
        if self.spec.inside_only:
            height, width = target.size
            x1, y1, x2, y2 = anchors.unbind(1)
            used &= (x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height)
        return match(box_iou(target.boxes, anchors), self.spec.matching, used)

    @torch.no_grad()
    def propose(
        self, predictions: Predictions, sizes: Sequence[Size], selection: heads.Selection
    ) -> list[Tensor]:
        """Return the proposals (at most `keep`, 4) of each image, best first, without gradients.

        The best `before` anchors of each level are decoded and cut to the image; boxes without an
        area go; each level is suppressed by itself. Only places that an image would have alone
        propose, so that it does not depend on how far its batch is padded; mmdet, which tests
        images one by one, has no such rule.
        """
        own = torch.stack([_unpadded(predictions.anchors, size) for size in sizes])
        objectness = predictions.objectness.masked_fill(~own, -torch.inf)
        of_levels = _best_of_levels(objectness, predictions.counts, selection.before)
        level = torch.cat([best.new_full(best.shape[1:], i) for i, best in enumerate(of_levels)])
        best = torch.cat(of_levels, dim=1)  # (B, K)
        scores = objectness.gather(1, best)
        offsets = predictions.offsets.gather(1, best[..., None].expand(-1, -1, 4)).float()
        boxes = decode(offsets, predictions.anchors[best], self.spec.deviations)  # (B, K, 4)
        boxes = torch.stack([clip(*each) for each in zip(boxes, sizes, strict=True)])
        real = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1) & (scores > -torch.inf)  # (B, K)
        proposals = []
        for rows, cut, score in zip(true_indices(real.unbind()), boxes, scores, strict=True):
            selected = suppress(
                cut[rows], score[rows], level[rows], nms=selection.nms, keep=selection.keep
            )
            proposals.append(cut[rows[selected]])
        return proposals


def _unpadded(anchors: Tensor, size: Size) -> Tensor:
    """Return which anchors (N,) are at places that an image of `size` would have without a batch.

    Their centres are whole pixels but for rounding.
    """
    height, width = padded_size(size)
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).round().unbind(1)
    return (x < width) & (y < height)


def _best_of_levels(objectness: Tensor, counts: list[int], count: int) -> list[Tensor]:
    """Return the anchors (B, at most `count`) of each level whose `objectness` is highest."""
    rows, start = [], 0
    for logits in objectness.split(counts, dim=1):
        rows.append(logits.topk(min(count, logits.shape[1]), dim=1).indices + start)
        start += logits.shape[1]
    return rows
