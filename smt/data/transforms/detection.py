"""From a decoded image and its objects to what a detector sees (mmdet 2.28's pipelines)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smt.config.augment import DetectionAugment, DetectionEvaluation, RandomCrop, Rescale
from smt.data import rng
from smt.data.transforms.image import Size, TransformedImage, rescaled


@dataclass(frozen=True)
class DetectionSample:
    """A training image and its objects."""

    image: Tensor
    """(3, H, W) uint8, not padded."""
    boxes: Tensor
    """(N, 4) float32, x1 y1 x2 y2 in pixels of `image`."""
    labels: Tensor
    """(N,) int64."""
    masks: Tensor | None
    """(N, H, W) bool, or None if none were given."""

    @property
    def size(self) -> Size:
        """Height and width."""
        height, width = self.image.shape[-2:]
        return height, width


class DetectionInput(NamedTuple):
    """An image to be evaluated; a tuple, whose memory DataLoader pins where there is a GPU."""

    image: Tensor
    """(3, H, W) uint8, not padded."""
    original_size: Size
    """Height and width of the image on disk."""

    @property
    def size(self) -> Size:
        """Height and width of `image`."""
        height, width = self.image.shape[-2:]
        return height, width

    def restore(self, boxes: Tensor) -> Tensor:
        """Return boxes (N, 4) in pixels of the image on disk, of boxes in pixels of `image`."""
        (height, width), (original_height, original_width) = self.size, self.original_size
        down, across = height / original_height, width / original_width
        return boxes / boxes.new_tensor([across, down, across, down])


class DetectionTrainTransform:
    """The recipe's augmentation: a flip, then one of its policies with equal probability.

    Uses torch's global generator alone: seed it for each image.
    """

    def __init__(self, augment: DetectionAugment) -> None:
        self._augment = augment

    def __call__(
        self,
        image: Image.Image,
        boxes: np.ndarray,
        labels: np.ndarray,
        masks: np.ndarray | None = None,
    ) -> DetectionSample:
        """Return the augmented image with those of its objects that are still in it.

        `image` is RGB of any size; `boxes` (N, 4) float32, x1 y1 x2 y2 in its pixels; `labels` (N,)
        int64; `masks` (N, height, width) bool.
        """
        transformed = TransformedImage.from_pil(image)
        scene = _Scene(transformed, boxes.astype(np.float32), np.arange(len(boxes)))
        if rng.bernoulli(self._augment.hflip):
            scene = scene.flip()
        policy = rng.choice(self._augment.policies)
        if policy.first is not None:
            scene = scene.rescale(policy.first)
        if policy.crop is not None:
            scene = scene.crop(policy.crop)
        scene = scene.rescale(policy.last).with_area()
        return DetectionSample(
            scene.image.pixels[0],
            torch.from_numpy(scene.boxes),
            torch.from_numpy(labels[scene.objects]),
            None
            if masks is None
            else torch.from_numpy(scene.image.apply_to_mask(masks[scene.objects])),
        )


class DetectionEvalTransform:
    """Scales an image for evaluation as the recipe says."""

    def __init__(self, evaluation: DetectionEvaluation) -> None:
        (self._short,), self._long = evaluation.rescale.short, evaluation.rescale.long

    def __call__(self, image: Image.Image) -> DetectionInput:
        """Return what the detector sees of an RGB image of any size."""
        original = TransformedImage.from_pil(image)
        scaled = original.resize(rescaled(original.size, self._short, self._long))
        return DetectionInput(scaled.pixels[0], original.size)


@dataclass(frozen=True)
class _Scene:
    """An image and the boxes in it."""

    image: TransformedImage
    boxes: np.ndarray
    """(N, 4) float32, x1 y1 x2 y2 in pixels of the image."""
    objects: np.ndarray
    """(N,) int64: which of the objects given each box is of."""

    def flip(self) -> "_Scene":
        width = self.image.size[1]
        x1, y1, x2, y2 = self.boxes.T
        boxes = np.stack([width - x2, y1, width - x1, y2], axis=1)
        return _Scene(self.image.flip(), boxes, self.objects)

    def rescale(self, rule: Rescale) -> "_Scene":
        (height, width), short = self.image.size, rng.choice(rule.short)
        image = self.image.resize(rescaled((height, width), short, rule.long))
        down, across = image.size[0] / height, image.size[1] / width
        boxes = self.boxes * np.array([across, down, across, down], np.float32)
        return _Scene(image, _clipped(boxes, image.size), self.objects)

    def crop(self, rule: RandomCrop) -> "_Scene":
        """Return a random rectangle, with the objects whose boxes have an area in it."""
        height, width = (
            rng.integer(min(side, rule.smallest), min(side, rule.largest))
            for side in self.image.size
        )
        top = rng.integer(0, self.image.size[0] - height)
        left = rng.integer(0, self.image.size[1] - width)
        image = self.image.crop(top, left, height, width)
        boxes = _clipped(self.boxes - np.array([left, top, left, top], np.float32), image.size)
        return _Scene(image, boxes, self.objects).with_area()

    def with_area(self) -> "_Scene":
        """Return the scene without boxes of no width or height, in float32: losses divide by it."""
        has = (self.boxes[:, 2] > self.boxes[:, 0]) & (self.boxes[:, 3] > self.boxes[:, 1])
        return _Scene(self.image, self.boxes[has], self.objects[has])


def _clipped(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Return boxes (N, 4) cut to an image of `size`."""
    height, width = size
    clipped: np.ndarray = boxes.clip(0, np.array([width, height, width, height], np.float32))
    return clipped
