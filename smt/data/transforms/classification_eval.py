"""From a decoded image to what a classifier sees in evaluation: timm's rules, without timm."""

import math

from PIL import Image

from smt.config.recipes import ClassificationRecipe


class EvalTransform:
    """The recipe's way to bring an image to the model's resolution for evaluation (bicubic)."""

    def __init__(self, recipe: ClassificationRecipe) -> None:
        self._side = recipe.resolution
        self._squash = recipe.evaluation.resize == "squash"
        self._short = math.floor(self._side / recipe.evaluation.crop_ratio)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return an RGB image of any size at R x R."""
        return self._squashed(image) if self._squash else self._cropped(image)

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
