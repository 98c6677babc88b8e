"""What recipes hold: `params/recipes.yaml`, `detection.yaml`, `segmentation.yaml`."""

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from smt.config.augment import (
    DetectionAugment,
    DetectionEvaluation,
    SegmentationAugment,
    SegmentationEvaluation,
)
from smt.config.types import (
    Fraction,
    Name,
    Positive,
    PositiveFloat,
    Problem,
    Range,
    Strict,
    divisors,
)

_RAND_AUGMENT = re.compile(r"^rand(-(m|n|p|w|mstd|mmax|inc)\d+(\.\d+)?)+$")

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""tf32: float32, of whose mantissas GPUs multiply 10 bits; on a CPU it is fp32."""


class Optimizer(Strict):
    """AdamW and the gradient."""

    lr: PositiveFloat
    """Peak learning rate at a global batch of `lr_batch`; scaled linearly to the real one."""
    lr_batch: Positive
    """Global batch at which the three learning rates of the recipe are stated."""
    betas: tuple[Fraction, Fraction]
    eps: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0)]
    """Applied to parameters of two or more dimensions; biases and norms have none."""
    clip_norm: PositiveFloat | None
    """Largest L2 norm of the whole gradient."""


class DownstreamOptimizer(Optimizer):
    """AdamW of detectors and segmenters."""

    decay: Literal["all", "all_but_layer_norm"]
    """What weight decay is applied to: every parameter, or all but those of LayerNorms. Biases and
    BatchNorms decay, as they do in the released configs."""
    backbone_rate: PositiveFloat
    """Learning rate of the backbone over that of the head."""


class Schedule(Strict):
    """Linear warm-up, then cosine, both per step."""

    epochs: Positive
    warmup_epochs: Annotated[int, Field(ge=0)]
    warmup_lr: Annotated[float, Field(ge=0)]
    """Learning rate of step 0, at `lr_batch`."""
    min_lr: Annotated[float, Field(ge=0)]
    """Learning rate that the cosine ends in, at `lr_batch`."""

    def problems(self) -> Iterator[Problem]:
        """Yield what is inconsistent, by key."""
        if self.warmup_epochs >= self.epochs:
            yield (
                ("warmup_epochs",),
                f"{self.warmup_epochs} epochs of warm-up in a run of {self.epochs}; "
                f"valid: 0 to {self.epochs - 1}",
            )


class StepSchedule(Strict):
    """Linear warm-up over the first steps, then a constant rate that drops at some epochs."""

    epochs: Positive
    warmup_steps: Annotated[int, Field(ge=0)]
    warmup_ratio: Fraction
    """Learning rate of step 0 over the one without warm-up."""
    milestones: tuple[Positive, ...]
    """Epochs after which the rate is multiplied by `gamma`."""
    gamma: PositiveFloat

    def problems(self) -> Iterator[Problem]:
        """Yield what is inconsistent, by key."""
        for index, epoch in enumerate(self.milestones):
            if epoch >= self.epochs:
                yield (
                    ("milestones", index),
                    f"epoch {epoch} in a run of {self.epochs}; valid: 1 to {self.epochs - 1}",
                )


class PolySchedule(Strict):
    """A number of steps rather than epochs; the rate falls as a power of what is left of them."""

    steps: Positive
    interval: Positive
    """Steps that count as an epoch: after them the model is evaluated and saved."""
    warmup_steps: Annotated[int, Field(ge=0)]
    warmup_ratio: Fraction
    """Learning rate of step 0 over the one without warm-up."""
    power: PositiveFloat
    min_lr: Annotated[float, Field(ge=0)]
    """Learning rate at the end, at `lr_batch`."""

    @property
    def epochs(self) -> int:
        """Intervals of the whole run."""
        return self.steps // self.interval

    def problems(self) -> Iterator[Problem]:
        """Yield what is inconsistent, by key."""
        if self.steps % self.interval:
            yield (
                ("interval",),
                f"{self.interval} does not divide the {self.steps} steps; "
                f"valid: {divisors(self.steps)}",
            )
        if self.warmup_steps >= self.steps:
            yield (
                ("warmup_steps",),
                f"{self.warmup_steps} in a run of {self.steps}; valid: 0 to {self.steps - 1}",
            )


class Augment(Strict):
    """Training-time augmentation, in timm's terms."""

    scale: Range
    """Area of the random resized crop over the image's."""
    ratio: Range
    """Aspect ratio of the random resized crop."""
    hflip: Fraction
    rand_augment: str | None
    """RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1."""
    color_jitter: Annotated[float, Field(ge=0)]
    """Used only where there is no RandAugment, as timm does."""
    random_erasing: Fraction
    """Probability; erased pixels are noise, another value for each."""
    mixup: Annotated[float, Field(ge=0)]
    """Alpha of Mixup's beta distribution; 0 is off."""
    cutmix: Annotated[float, Field(ge=0)]
    """Alpha of CutMix's beta distribution; 0 is off."""
    mix_prob: Fraction
    """Probability that a batch is mixed at all."""
    mix_switch_prob: Fraction
    """Probability of CutMix rather than Mixup where both are on."""
    label_smoothing: Fraction

    def problems(self) -> Iterator[Problem]:
        """Yield what is inconsistent, by key."""
        if self.rand_augment is not None and not _RAND_AUGMENT.match(self.rand_augment):
            yield (
                ("rand_augment",),
                f"{self.rand_augment!r} is not timm's notation; valid: rand-m9-mstd0.5-inc1 and "
                "the like (parts m, n, p, w, mstd, mmax, inc), or null",
            )


class Evaluation(Strict):
    """How an image is brought to the model's resolution for evaluation."""

    resize: Literal["crop", "squash"]
    """crop: short side to resolution / crop_ratio, then the centre; squash: straight to square."""
    crop_ratio: Annotated[float, Field(gt=0, le=1)]


class Guard(Strict):
    """What is done with a step whose loss or gradient is not finite, or whose loss jumps."""

    policy: Literal["stop", "skip"]
    """skip: skip the step and continue, with a warning and a line in the journal."""
    max_skips: Annotated[int, Field(ge=0)]
    """Steps of a run that may be skipped; at the next one it stops."""
    spike: PositiveFloat | None
    """A loss further above its running mean than this many times its running mean deviation is
    such a step as well, from the 100th step on; null for no such rule."""


class Recipe(Strict):
    """How a model is trained."""

    FILE: ClassVar[str]
    """Of params/, where recipes of this kind stand."""
    WARMUP: ClassVar[str]
    """Key of how long the learning rate rises."""

    title: str
    dataset: Name
    resolution: Annotated[int, Field(ge=32)]
    """Side of the square that a classifier sees, in pixels; of a detector or segmenter, the shorter
    side of the image that its size is counted at."""
    global_batch: Positive
    """Images per optimizer step over all processes and accumulation steps."""
    device_batch: Positive
    """Images of a micro-batch: one forward pass of one process. BatchNorm sees this many."""
    precision: Precision
    deterministic: bool
    """Whether training is bitwise reproducible, so that an interrupted run ends in the bytes of an
    uninterrupted one; false: the fastest algorithms of the GPU. Not part of the fingerprint."""
    recompute: bool
    """Gradient checkpointing: of each block of the trunk only the input is kept for the backward
    pass, which computes the rest again. It saves memory, takes time, and changes no number; not
    part of the fingerprint. Of SMT alone: a model of timm is trained without."""
    optimizer: Optimizer
    schedule: Schedule | StepSchedule | PolySchedule
    guard: Guard
    drop_path: Annotated[float, Field(ge=0, lt=1)]
    """Drop-path rate of the last block; an experiment may set its own."""
    unreadable_images: Literal["stop", "skip"]
    """skip: another image of the data set replaces one that cannot be decoded."""
    eval_every: Positive
    """Epochs between evaluations; the last epoch is always evaluated."""

    @property
    def half_precision(self) -> bool:
        """Whether most of it is computed in 16 bits, which is for GPUs."""
        return self.precision in ("bf16", "fp16")

    @property
    def compiles(self) -> bool:
        """Whether blocks go through torch.compile."""
        return False

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a global batch, over all processes."""
        return self.global_batch // self.device_batch

    def problems(self) -> Iterator[Problem]:
        """Yield what is inconsistent, by key."""
        if self.global_batch % self.device_batch:
            yield (
                ("device_batch",),
                f"{self.device_batch} does not divide the global batch of {self.global_batch}; "
                f"valid: {divisors(self.global_batch)}",
            )


class ClassificationRecipe(Recipe):
    """How a classifier is trained."""

    FILE = "recipes.yaml"
    WARMUP = "schedule.warmup_epochs"
    schedule: Schedule
    compile: bool
    """Whether torch.compile fuses the operations of each block. Weights differ in their last bits
    from those without it; not part of the fingerprint, recorded for each attempt. Detectors and
    segmenters have no such key: each size of image would be compiled anew. Of SMT alone."""
    augment: Augment
    evaluation: Evaluation

    @property
    def compiles(self) -> bool:
        """Whether blocks go through torch.compile."""
        return self.compile

    def problems(self) -> Iterator[Problem]:
        """Yield what is inconsistent, by key."""
        yield from super().problems()
        if self.compile and self.recompute:
            yield (
                ("recompute",),
                "true with compile: true: what is computed again in compiled code may have other "
                "bits; valid: one of the two",
            )
        if (self.augment.mixup or self.augment.cutmix) and self.device_batch % 2:
            yield (
                ("device_batch",),
                f"{self.device_batch} is odd: Mixup and CutMix pair the images of a batch; "
                "valid: an even number, or mixup: 0 and cutmix: 0",
            )


class DownstreamRecipe(Recipe):
    """How a detector or segmenter is trained."""

    optimizer: DownstreamOptimizer
    drop_path_mode: Literal["stochastic", "dropout"]
    """stochastic: a block's branch is dropped for an image (the paper); dropout: element by
    element (the release's detection and segmentation code)."""
    resolution_long: Annotated[int, Field(ge=32)]
    """Longer side of the image that its size is counted at."""


class DetectionRecipe(DownstreamRecipe):
    """How a detector is trained."""

    FILE = "detection.yaml"
    WARMUP = "schedule.warmup_steps"
    schedule: StepSchedule
    augment: DetectionAugment
    evaluation: DetectionEvaluation


class SegmentationRecipe(DownstreamRecipe):
    """How a segmenter is trained."""

    FILE = "segmentation.yaml"
    WARMUP = "schedule.warmup_steps"
    schedule: PolySchedule
    augment: SegmentationAugment
    evaluation: SegmentationEvaluation
