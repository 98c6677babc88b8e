"""How images become what detectors and segmenters see, in training and in evaluation."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from smt.config.types import Fraction, Positive, PositiveFloat, Problem, Range, Strict

Choices = Annotated[tuple[Positive, ...], Field(min_length=1)]


class Rescale(Strict):
    """Scales an image, its proportions kept, as far as both limits allow."""

    short: Choices
    """Limit of the shorter side in pixels: one of these at random for each image."""
    long: Positive
    """Limit of the longer side."""


class FixedRescale(Rescale):
    """Scales every image alike."""

    short: Annotated[Choices, Field(max_length=1)]
    """Limit of the shorter side in pixels, a list of one."""


class RandomCrop(Strict):
    """Random crop with independent height and width; it may be without an object."""

    smallest: Positive
    largest: Positive
    """Of a side, in pixels, if the image has as many."""

    def problems(self) -> Iterator[Problem]:
        """Yield what is inconsistent, by key."""
        if self.smallest > self.largest:
            yield ("smallest",), f"{self.smallest} is more than largest, {self.largest}"


class Policy(Strict):
    """One way to scale an image in training."""

    first: Rescale | None = None
    """Before the crop."""
    crop: RandomCrop | None = None
    last: Rescale


class DetectionAugment(Strict):
    """Training-time augmentation of a detector: flip, then a policy, all with equal probability."""

    hflip: Fraction
    policies: Annotated[tuple[Policy, ...], Field(min_length=1)]


class DetectionEvaluation(Strict):
    """How a detector is evaluated: one scale, one image at a time."""

    rescale: FixedRescale


class Photometric(Strict):
    """Photometric distortion (Liu et al., SSD, 2016): each part with a probability of a half."""

    brightness: Annotated[float, Field(ge=0)]
    """Largest value that is added to all channels, of 255."""
    contrast: Range
    """Factors of all channels, before or after saturation and hue."""
    saturation: Range
    hue: Annotated[float, Field(ge=0, le=180)]
    """Largest turn in degrees of 180."""


class SegmentationAugment(Strict):
    """Training-time augmentation of a segmenter: scale, crop, flip, photometric distortion."""

    rescale: FixedRescale
    """At a factor of 1."""
    factor: Range
    """Of both limits, uniformly random."""
    crop: Positive
    """Side of the square; a smaller image is padded with the mean colour, and no class."""
    largest_class: Fraction
    """Part of a crop that one class may have; tried ten times."""
    hflip: Fraction
    photometric: Photometric | None


class SegmentationEvaluation(Strict):
    """How a segmenter is evaluated: whole images, one at a time."""

    rescale: FixedRescale
    factors: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """Of the multi-scale test, where probabilities of all factors are averaged."""
    hflip: bool
    """The multi-scale test sees each factor mirrored as well."""
