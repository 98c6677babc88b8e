"""From a decoded image to what a classifier sees in evaluation: timm's rules, without timm."""

import math

import numpy as np
import torch
from PIL import Image

from smt.config.recipes import ClassificationRecipe
from smt.data.transforms.image import DEVIATION, MEAN


def _levels() -> np.ndarray:
    """Return the normalised value of each of the 256 levels of each channel, (3, 256) float32."""
    levels = torch.arange(256, dtype=torch.uint8).to(torch.float32).div(255)
    mean, deviation = torch.tensor(MEAN)[:, None], torch.tensor(DEVIATION)[:, None]
    return levels.expand(3, 256).sub(mean).div(deviation).numpy()


_LEVELS = _levels()


def normalise(image: Image.Image, out: torch.Tensor) -> None:
    """Write an RGB image to `out`, (3, R, R) float32: less ImageNet's mean, over its deviation.

    The bits are those of timm's ToTensor and Normalize, looked up rather than computed: 11 us
    against 40 us at 32 x 32 pixels, 139 against 282 at 224 x 224.
    """
    pixels, target = np.asarray(image), out.numpy()  # (R, R, 3) uint8, (3, R, R)
    for channel in range(3):
        # A level cannot be out of range; "clip" only spares NumPy a copy of the result.
        np.take(_LEVELS[channel], pixels[:, :, channel], out=target[channel], mode="clip")


class EvalTransform:
    """The recipe's way to bring an image to the model's resolution for evaluation (bicubic)."""

    def __init__(self, recipe: ClassificationRecipe) -> None:
        self._side = recipe.resolution
        self._squash = recipe.evaluation.resize == "squash"
        self._short = math.floor(self._side / recipe.evaluation.crop_ratio)

    def __call__(self, image: Image.Image, out: torch.Tensor) -> None:
        """Write the resized image to `out`, (3, R, R) float32; `image` is RGB of any size."""
        normalise(self._squashed(image) if self._squash else self._cropped(image), out)

    def _squashed(self, image: Image.Image) -> Image.Image:
        return image.resize((self._side, self._side), Image.Resampling.BICUBIC)

    def _cropped(self, image: Image.Image) -> Image.Image:
        """Return the middle of the image, scaled so that its short side is somewhat longer."""
        short = min(image.size)
        # int() cuts off, as torchvision's Resize does.
        width, height = (int(self._short * side / short) for side in image.size)
        scaled = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (round((side - self._side) / 2) for side in scaled.size)
        return scaled.crop((left, top, left + self._side, top + self._side))
