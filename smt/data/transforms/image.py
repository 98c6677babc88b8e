"""Resizing, cropping and flipping of an image and its masks, by mmcv's rules."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Size = tuple[int, int]
"""Height and width in pixels."""


MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue, from 0 to 1 (timm's IMAGENET_DEFAULT_MEAN and _STD)."""

PADDED_TO = 32
"""Pixels that the sides of a detector's images are padded to multiples of: the coarsest stage's
stride."""


def padded_size(size: Size) -> Size:
    """Return the size to which an image of `size` is padded by itself."""
    height, width = (-(-side // PADDED_TO) * PADDED_TO for side in size)
    return height, width


def rescaled(size: Size, short: int, long: int) -> Size:
    """Return the largest size of the same proportions whose sides keep to both limits, rounded."""
    factor = min(long / max(size), short / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def normalised(pixels: Tensor) -> Tensor:
    """Return (3, H, W) float32 of `pixels` (3, H, W) uint8: less ImageNet's mean, over deviation.

    The bits are those of timm's ToTensor and Normalize.
    """
    mean = torch.tensor(MEAN)[:, None, None]
    deviation = torch.tensor(DEVIATION)[:, None, None]
    values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    return values.div_(255).sub_(mean).div_(deviation)


@dataclass(frozen=True)
class TransformedImage:
    """An image, and where in the original each of its rows and columns comes from.

    Maps of the original (masks, labels) are not touched until the end: then `apply_to_mask` reads
    each pixel once, at the place where one nearest-neighbour step after another would have found
    it.
    """

    pixels: Tensor
    """(1, 3, H, W) uint8."""
    rows: np.ndarray
    """(H,) int64."""
    columns: np.ndarray
    """(W,) int64."""

    @classmethod
    def from_pil(cls, image: Image.Image) -> "TransformedImage":
        """Return an RGB image, not transformed yet."""
        pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
        return cls(pixels, np.arange(image.height), np.arange(image.width))

    @property
    def size(self) -> Size:
        """Height and width now."""
        return len(self.rows), len(self.columns)

    def flip(self) -> "TransformedImage":
        """Return the horizontal flip."""
        return TransformedImage(self.pixels.flip(-1), self.rows, self.columns[::-1])

    def resize(self, size: Size) -> "TransformedImage":
        """Return the image scaled to `size`: bilinear, without smoothing before it is shrunk.

        This is OpenCV's INTER_LINEAR, which mmcv uses, to within a level of 255; masks are read by
        OpenCV's INTER_NEAREST.
        """
        if size == self.size:
            return self
        # torch is fastest where the three channels of a pixel lie together.
        together = self.pixels.contiguous(memory_format=torch.channels_last)
        pixels = F.interpolate(together, size=size, mode="bilinear", align_corners=False)
        return TransformedImage(
            pixels, _nearest(self.rows, size[0]), _nearest(self.columns, size[1])
        )

    def crop(self, top: int, left: int, height: int, width: int) -> "TransformedImage":
        """Return the rectangle from row `top` and column `left` on; it lies inside the image."""
        rows, columns = slice(top, top + height), slice(left, left + width)
        return TransformedImage(
            self.pixels[..., rows, columns], self.rows[rows], self.columns[columns]
        )

    def apply_to_mask(self, masks: np.ndarray) -> np.ndarray:
        """Return masks (..., height, width) of the original, transformed alike: (..., H, W)."""
        return masks.take(self.columns, axis=-1).take(self.rows, axis=-2)


def _nearest(places: np.ndarray, length: int) -> np.ndarray:
    """Return the `length` of `places` that scaling along their axis picks: floor(i * ratio)."""
    return places[np.arange(length) * len(places) // length]
