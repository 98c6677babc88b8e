"""From a decoded image and its label map to what a segmenter sees (mmseg 0.30's pipelines)."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smt.config.augment import FixedRescale, SegmentationAugment, SegmentationEvaluation
from smt.data import rng
from smt.data.transforms.image import Size, TransformedImage, rescaled
from smt.data.transforms.photometric import distort
from smt.datasets.label_maps import NO_CLASS

_TRIES = 10
"""Random crops that are tried before the next one is taken as it is (mmseg)."""


class SegmentationSample(NamedTuple):
    """A training image and its classes, in the top left of a square of the recipe's `crop`."""

    image: Tensor
    """(3, crop, crop) uint8."""
    labels: Tensor
    """(crop, crop) uint8, NO_CLASS where there is none, and beyond the image."""
    size: Size
    """Height and width of the image without what is beyond."""


class SegmentationTrainTransform:
    """The recipe's augmentation: scale, crop, flip, photometric distortion.

    Uses torch's global generator alone: seed it for each image.
    """

    def __init__(self, augment: SegmentationAugment) -> None:
        self._augment = augment

    def __call__(self, image: Image.Image, labels: np.ndarray | Image.Image) -> SegmentationSample:
        """Return what the segmenter learns from.

        `image` is RGB of any size, `labels` (height, width) uint8 of the same, NO_CLASS where there
        is none.
        """
        augment, label_map = self._augment, np.asarray(labels)
        factor = rng.uniform(*augment.factor)
        transformed = _scaled(TransformedImage.from_pil(image), augment.rescale, factor)
        transformed = self._crop(transformed, label_map)
        if rng.bernoulli(augment.hflip):
            transformed = transformed.flip()
        pixels = transformed.pixels[0].contiguous()
        if augment.photometric is not None:
            pixels = torch.from_numpy(distort(pixels.numpy(), augment.photometric))
        return _padded(pixels, transformed.apply_to_mask(label_map), augment.crop)

    def _crop(self, image: TransformedImage, label_map: np.ndarray) -> TransformedImage:
        """Return a crop in which no class has too large a part, unless all that are tried have."""
        largest = self._augment.largest_class
        for _ in range(_TRIES if largest < 1 else 0):
            crop = self._any_crop(image)
            if _largest_part(crop.apply_to_mask(label_map)) < largest:
                return crop
        return self._any_crop(image)

    def _any_crop(self, image: TransformedImage) -> TransformedImage:
        height, width = (min(side, self._augment.crop) for side in image.size)
        top = rng.integer(0, image.size[0] - height)
        left = rng.integer(0, image.size[1] - width)
        return image.crop(top, left, height, width)


class SegmentationEvalTransform:
    """Scales an image for evaluation as the recipe says."""

    def __init__(self, evaluation: SegmentationEvaluation) -> None:
        self._rescale = evaluation.rescale

    def __call__(self, image: Image.Image, factor: float = 1) -> Tensor:
        """Return what the segmenter sees at `factor` of an RGB image: (3, H, W) uint8."""
        return _scaled(TransformedImage.from_pil(image), self._rescale, factor).pixels[0]


def _scaled(image: TransformedImage, rule: FixedRescale, factor: float) -> TransformedImage:
    """Return `image` scaled by a rule whose limits are multiplied by `factor`."""
    (short,) = rule.short
    limits = int(short * factor), int(rule.long * factor)
    return image.resize(rescaled(image.size, *limits))


def _largest_part(labels: np.ndarray) -> float:
    """Return the part that the largest class has of the labelled pixels; 1 without any."""
    counts = np.bincount(labels.ravel(), minlength=NO_CLASS + 1)[:NO_CLASS]
    total = counts.sum()
    return float(counts.max() / total) if total else 1.0


def _padded(image: Tensor, labels: np.ndarray, side: int) -> SegmentationSample:
    """Return both in the top left of a square."""
    height, width = labels.shape
    square = torch.zeros(3, side, side, dtype=torch.uint8)
    square[:, :height, :width] = image
    classes = torch.full((side, side), NO_CLASS, dtype=torch.uint8)
    classes[:height, :width] = torch.from_numpy(labels)
    return SegmentationSample(square, classes, (height, width))
