"""Parameters and multiply-accumulates of detectors and segmenters, part by part, at a fixed size.

Nothing is computed. Where a forward pass depends on what it finds, its largest numbers are counted,
as published tables do: all proposals for box heads, all detections for mask heads.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from smt.config.heads import Detector, UPerNet
from smt.config.models import Model
from smt.detection import build
from smt.detection.atss import ATSSDetector
from smt.detection.dense import DenseDetector
from smt.detection.dino import DINODetector
from smt.detection.dino_neck import levels_of
from smt.detection.retinanet import RetinaNetDetector
from smt.detection.sparse_rcnn import SparseRCNNDetector
from smt.detection.structures import Size
from smt.detection.two_stage import TwoStageDetector
from smt.models.profile import Counts, count_forward
from smt.models.pyramid import Pyramid
from smt.segmentation import upernet


@dataclass(frozen=True)
class Part:
    """A part of a model, by the name that its tensors start with."""

    parameters: int
    counts: Counts | None
    """Of one image; None for what is only trained with, or holds parameters and nothing else."""


@dataclass(frozen=True)
class Sizes:
    """What a model is and what one image costs it."""

    parts: dict[str, Part]

    @property
    def parameters(self) -> int:
        """Return the parameters of all parts, those that are only trained with among them."""
        return sum(part.parameters for part in self.parts.values())

    @property
    def counts(self) -> Counts:
        """Return what prediction costs: the auxiliary head of a segmenter takes no part."""
        return _sum(part.counts for part in self.parts.values() if part.counts is not None)


def downstream_counts(model: Model, head: Detector | UPerNet, classes: int, size: Size) -> Sizes:
    """Return the sizes of `head` on the backbone `model`, for an image of `size`."""
    images = torch.empty(1, 3, *size, device="meta")
    with torch.device("meta"):
        backbone = Pyramid(model, 0.0)
        network = (
            upernet.UPerNet(backbone, head=head, classes=classes)
            if isinstance(head, UPerNet)
            else build.build(backbone, head, classes)
        )
    network.eval().requires_grad_(False)
    with torch.no_grad():
        features = backbone(images)
    costs = {"backbone": count_forward(backbone, images), **_head(network, features, size)}
    parts = dict.fromkeys(name.split(".")[0] for name, _ in network.named_parameters())
    return Sizes({name: Part(_parameters(network, name), costs.get(name)) for name in parts})


def _parameters(network: nn.Module, part: str) -> int:
    named = network.named_parameters()
    return sum(parameter.numel() for name, parameter in named if name.split(".")[0] == part)


def _head(network: nn.Module, features: list[Tensor], size: Size) -> dict[str, Counts]:
    """Return what each part that stands on `features` of an image costs."""
    match network:
        case TwoStageDetector():
            return _two_stage(network, features)
        case RetinaNetDetector() | ATSSDetector():
            return _dense(network, features[1:])
        case SparseRCNNDetector():
            return _sparse_rcnn(network, features)
        case DINODetector():
            return _dino(network, features[1:], size)
        case upernet.UPerNet():
            return {"decoder": count_forward(network.decoder, features)}
    raise TypeError(f"{type(network).__name__}: its parts are not known")


def _two_stage(network: TwoStageDetector, features: list[Tensor]) -> dict[str, Counts]:
    spec = network.head
    regions, detections = (
        torch.empty(number, spec.channels, side, side, device="meta")
        for number, side in (
            (spec.rpn.test.keep, spec.resolution),
            (spec.test.keep, spec.mask.resolution),
        )
    )
    with torch.no_grad():
        levels = network.neck(features)
    box_heads = _sum(count_forward(head, regions) for head in network.box_heads)
    return {
        "neck": count_forward(network.neck, features),
        "rpn": count_forward(network.rpn, levels),
        # The tool of the published counts has nothing for their norms, which are synchronised ones.
        "box_heads": replace(box_heads, norm_elements=0),
        "mask_heads": _sum(count_forward(head, detections) for head in network.mask_heads),
    }


def _dense(network: DenseDetector, features: list[Tensor]) -> dict[str, Counts]:
    with torch.no_grad():
        levels = network.pyramid(features)
    return {
        "pyramid": count_forward(network.pyramid, features),
        "head": count_forward(network.head, levels),
    }


def _sparse_rcnn(network: SparseRCNNDetector, features: list[Tensor]) -> dict[str, Counts]:
    spec = network.head
    proposals = network.proposal_features[None]  # (1, P, C)
    regions = torch.empty(
        spec.proposals, spec.channels, spec.resolution, spec.resolution, device="meta"
    )
    return {
        "pyramid": count_forward(network.pyramid, features),
        "stages": _sum(count_forward(stage, proposals, regions) for stage in network.stages),
    }


def _dino(network: DINODetector, features: list[Tensor], size: Size) -> dict[str, Counts]:
    with torch.no_grad():
        levels = levels_of(network.neck(features), size, [size])
    return {
        "neck": count_forward(network.neck, features),
        "transformer": count_forward(network.transformer, levels),
    }


def _sum(counts: Iterable[Counts]) -> Counts:
    first, *others = counts
    return sum(others, start=first)
