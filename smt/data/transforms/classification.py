"""From a decoded image to what a classifier learns from, and mixed batches: all by timm's rules."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose, RandomHorizontalFlip

from smt.config.recipes import Augment, ClassificationRecipe
from smt.data.rng import seeded
from smt.data.transforms.erasing import Erasure, draw_erasure

Step = Callable[[Image.Image], Image.Image]


class TrainTransform:
    """The recipe's augmentation of one image.

    Random resized crop (bicubic), horizontal flip, RandAugment or else color jitter; then, on the
    device, normalisation and random erasing by pixel noise. Draws from the global generators of
    Python, NumPy and torch: seed all three for each image.
    """

    def __init__(self, recipe: ClassificationRecipe) -> None:
        augment = recipe.augment
        crop, colour, _ = create_transform(
            recipe.resolution,
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            color_jitter=augment.color_jitter,
            auto_augment=augment.rand_augment,
            interpolation="bicubic",
            separate=True,
        )
        first, *others = (_direct(step) for step in (*crop.transforms, *colour.transforms))
        self.crop: Step = first
        """From RGB of any size to RGB of the model's resolution."""
        self.flip_and_colour: Step = Compose(others)
        self._erasing = RandomErasing(augment.random_erasing, mode="pixel", device="cpu")

    def __call__(self, image: Image.Image) -> tuple[Image.Image, Erasure | None]:
        """Return an RGB image of any size augmented, R x R, and what is to be erased of it."""
        augmented = self.flip_and_colour(self.crop(image))
        return augmented, self.erase(augmented.size)

    def erase(self, size: tuple[int, int]) -> Erasure | None:
        """Return what is to be erased of an image of `size`, if anything is."""
        return draw_erasure(self._erasing, size)


def _direct(step: Step) -> Step:
    """Return a faster equivalent of a step of timm's, if known: same random numbers, same pixels.

    At 32 x 32 pixels each of the three takes 4 % less of an image's time.
    """
    match step:
        case RandomResizedCropAndInterpolation():
            return partial(_crop, step)
        case RandomHorizontalFlip():
            return partial(_flip, step.p)
        case RandAugment(choice_weights=None):
            return partial(_rand_augment, step)
    return step


def _crop(step: RandomResizedCropAndInterpolation, image: Image.Image) -> Image.Image:
    top, left, height, width = step.get_params(image, step.scale, step.ratio)
    part = image.crop((left, top, left + width, top + height))
    return part.resize(step.size, Image.Resampling.BICUBIC)


def _flip(probability: float, image: Image.Image) -> Image.Image:
    if torch.rand(1).item() < probability:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def _rand_augment(step: RandAugment, image: Image.Image) -> Image.Image:
    for choice in np.random.randint(0, len(step.ops), step.num_layers).tolist():
        image = step.ops[choice](image)
    return image


class Mix:
    """Mixup or CutMix of a batch with itself in reverse order, and label smoothing."""

    def __init__(self, augment: Augment, classes: int) -> None:
        self._classes, self._smoothing = classes, augment.label_smoothing
        self._mixup = (
            Mixup(
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                prob=augment.mix_prob,
                switch_prob=augment.mix_switch_prob,
                mode="batch",
                label_smoothing=augment.label_smoothing,
                num_classes=classes,
            )
            if augment.mixup or augment.cutmix
            else None
        )

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, *key: int | str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mixed images (B, 3, R, R) and soft targets (B, classes) for labels (B,) int64.

        The random numbers depend on `key` alone. `images` is changed in place. B is even, unless
        the recipe mixes nothing.
        """
        if self._mixup is None:
            return images, mixup_target(labels, self._classes, smoothing=self._smoothing)
        with seeded(*key):
            mixed: tuple[torch.Tensor, torch.Tensor] = self._mixup(images, labels)
        return mixed
