"""Heads on the backbone: the paper's detectors and segmenter, read from `params/heads.yaml`.

Intersections over union (IoU) are fractions. Sizes are pixels of the image that the model sees.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticKnownError

from smt.config.types import Fraction, Positive, PositiveFloat, Problem, Strict, divisors

Deviations = tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat]
"""By which the four offsets of a box (dx, dy, dw, dh) are divided."""
Weight = Annotated[float, Field(ge=0)]
"""Of a loss in the sum of all."""

_BATCH_NORM = "the head's synchronised BatchNorm takes statistics"
_OBJECTS = "losses are divided by the mean number of positives"


class Head(Strict):
    """What stands on the backbone."""

    task: ClassVar[Literal["detect", "segment"]]

    kind: str
    """One of `HEADS`."""
    title: str

    @property
    def over_processes(self) -> str:
        """What of a step is taken over the micro-batches of all processes, or nothing.

        It is said with its verb, to be followed by "of so many images".
        """
        return ""


class Detector(Head):
    """Finds objects."""

    task = "detect"


class Segmenter(Head):
    """Tells the class of every pixel."""

    task = "segment"


class Anchors(Strict):
    """Boxes of fixed sizes at every place of every level."""

    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """Side of a square anchor over its level's stride."""
    ratios: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """Height over width, at the same area."""


class Selection(Strict):
    """Which of an image's predictions are kept."""

    before: Positive
    """Best predictions of each level that are looked at."""
    nms: Fraction
    """IoU above which the weaker of two boxes goes."""
    keep: Positive
    """Boxes of an image."""
    score: Fraction = 0.0
    """Predictions below it are never looked at."""


class Matching(Strict):
    """Which object an anchor or a proposal is to find: the one that it overlaps most."""

    positive: Fraction
    """IoU from which it is to find the object."""
    negative: Fraction
    """IoU below which it is background; between the two it is left out."""
    low_quality: Fraction | None
    """IoU from which an object that no other box finds better takes its best box all the same;
    null for no such rule."""

    def problems(self) -> Iterator[Problem]:
        """Yield what is inconsistent, by key."""
        if self.negative > self.positive:
            yield ("negative",), f"{self.negative} is more than positive, {self.positive}"


class Sampling(Strict):
    """How many boxes of an image a loss is taken of."""

    boxes: Positive
    positive: Fraction
    """Largest part of them that is to find objects."""


class RPN(Strict):
    """Region proposal network."""

    anchors: Anchors
    deviations: Deviations
    matching: Matching
    inside_only: bool
    """Anchors that reach over the image's edge are left out of training."""
    sampling: Sampling
    smooth_l1: PositiveFloat | None
    """Beta of the smooth L1 loss of offsets, or null for L1."""
    training: Selection
    test: Selection


class BoxHead(Strict):
    """Predicts classes and boxes of pooled regions."""

    convolutions: Annotated[int, Field(ge=0)]
    """3 x 3 convolutions with synchronised BatchNorm."""
    layers: Positive
    """Fully connected layers."""
    width: Positive
    """Of each of those layers."""
    loss: Literal["l1", "giou"]
    """Of boxes: L1 of offsets, or GIoU of the boxes themselves."""
    loss_weight: Weight


class RoIStage(Strict):
    """A refinement of the boxes."""

    matching: Matching
    deviations: Deviations
    weight: Weight
    """Of the stage's losses in the sum."""


class MaskHead(Strict):
    """Predicts the masks of pooled regions."""

    convolutions: Positive
    resolution: Positive
    """Side of the pooled region; the mask is twice as large."""


class TwoStage(Detector):
    """Mask R-CNN (one stage) or Cascade Mask R-CNN (three), on a pyramid of five levels."""

    channels: Positive
    """Of every level of the pyramid."""
    rpn: RPN
    sampling: Sampling
    stages: Annotated[tuple[RoIStage, ...], Field(min_length=1)]
    resolution: Positive
    """Side of the region that is pooled for classes and boxes."""
    box: BoxHead
    mask: MaskHead
    test: Selection
    mask_threshold: Fraction

    @property
    def over_processes(self) -> str:
        """The BatchNorms between the convolutions of the box heads, if there are any."""
        return _BATCH_NORM if self.box.convolutions else ""


class RetinaNet(Detector):
    """RetinaNet: focal loss on dense anchors."""

    channels: Positive
    convolutions: Positive
    """In front of classes and of boxes."""
    anchors: Anchors
    matching: Matching
    focal_alpha: Fraction
    focal_gamma: PositiveFloat
    test: Selection


class ATSS(Detector):
    """ATSS: one anchor at each place, assigned by the statistics of an object's candidates."""

    channels: Positive
    convolutions: Positive
    groups: Positive
    """Of GroupNorm after each convolution."""
    anchor_scale: PositiveFloat
    """Side of the anchor over its level's stride."""
    deviations: Deviations
    candidates: Positive
    """Of each level, those nearest to the object's centre."""
    focal_alpha: Fraction
    focal_gamma: PositiveFloat
    box_weight: Weight
    centerness_weight: Weight
    test: Selection

    def problems(self) -> Iterator[Problem]:
        """Yield what is inconsistent, by key."""
        yield from _divided(self.channels, groups=self.groups)

    @property
    def over_processes(self) -> str:
        """What the losses are divided by."""
        return _OBJECTS


class SetWeights(Strict):
    """Of the costs by which predictions are matched to objects one to one, or of the losses."""

    classes: Weight
    l1: Weight
    giou: Weight


class SparseRCNN(Detector):
    """Sparse R-CNN: learned proposals, refined in stages."""

    channels: Positive
    proposals: Positive
    stages: Positive
    heads: Positive
    """Of self-attention among proposals."""
    feedforward: Positive
    dynamic_channels: Positive
    """Of the convolution whose weights each proposal makes for itself."""
    class_layers: Positive
    box_layers: Positive
    deviations: Deviations
    resolution: Positive
    """Side of a pooled region."""
    sampling_ratio: Positive
    """Samples a bin and axis of RoIAlign."""
    focal_alpha: Fraction
    focal_gamma: PositiveFloat
    cost: SetWeights
    loss: SetWeights
    keep: Positive
    """Predictions of an image."""

    def problems(self) -> Iterator[Problem]:
        """Yield what is inconsistent, by key."""
        yield from _divided(self.channels, heads=self.heads)

    @property
    def over_processes(self) -> str:
        """What the losses are divided by."""
        return _OBJECTS


class Denoising(Strict):
    """Objects with noise, which the decoder learns to give back as they were."""

    queries: Positive
    """Noised objects of an image, about."""
    label_noise: Fraction
    """A label is replaced by a random one with half of this probability."""
    box_noise: Weight
    """Largest shift of a side over half of the box's size."""


class DINO(Detector):
    """DINO: a deformable transformer whose queries are selected among the encoder's outputs."""

    NORM_GROUPS: ClassVar[int] = 32
    """Of GroupNorm (Deformable DETR, and DINO after it)."""

    channels: Positive
    levels: Literal[4]
    """Of features; the last is a convolution of the backbone's last."""
    encoder_layers: Positive
    decoder_layers: Positive
    heads: Positive
    points: Positive
    """Samples of deformable attention for each head and level."""
    feedforward: Positive
    queries: Positive
    denoising: Denoising
    focal_alpha: Fraction
    focal_gamma: PositiveFloat
    cost: SetWeights
    loss: SetWeights
    keep: Positive
    """Predictions of an image."""

    def problems(self) -> Iterator[Problem]:
        """Yield what is inconsistent, by key."""
        if self.channels % self.NORM_GROUPS:
            few, more = self.NORM_GROUPS, 2 * self.NORM_GROUPS
            yield (
                ("channels",),
                f"{self.channels} is no multiple of {few}; valid: {few}, {more}, ...",
            )
        yield from _divided(self.channels, heads=self.heads)

    @property
    def over_processes(self) -> str:
        """What the losses are divided by."""
        return _OBJECTS


class UPerNet(Segmenter):
    """UPerNet: pyramid pooling and a feature pyramid, with an auxiliary head on stage 3."""

    channels: Positive
    pools: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """Sides of the grids that the last stage is pooled to."""
    dropout: Fraction
    auxiliary_channels: Positive
    auxiliary_weight: Weight
    """Of the auxiliary head's loss in the sum."""

    @property
    def over_processes(self) -> str:
        """The BatchNorms."""
        return _BATCH_NORM


def _divided(channels: int, **parts: int) -> Iterator[Problem]:
    for key, number in parts.items():
        if channels % number:
            valid = divisors(channels)
            yield (key,), f"{number} does not divide the {channels} channels; valid: {valid}"


HEADS: Mapping[str, type[Head]] = {
    "two_stage": TwoStage,
    "retinanet": RetinaNet,
    "atss": ATSS,
    "sparse_rcnn": SparseRCNN,
    "dino": DINO,
    "upernet": UPerNet,
}
"""The record of each kind. A kind is the name of its module in `smt/detection` or
`smt/segmentation`, too."""


def _refuse_kind(kind: str) -> str:
    *others, last = (repr(name) for name in HEADS)
    raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})


class UnknownHead(Strict):
    """Stands in for an entry without a kind that there is, so that the error says so."""

    kind: Annotated[str, AfterValidator(_refuse_kind)]


def record_of(entry: Mapping[str, Any]) -> type[Strict]:
    """Return the record of an entry of `params/heads.yaml`, by its kind."""
    return HEADS.get(str(entry.get("kind")), UnknownHead)
