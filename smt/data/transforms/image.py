"""Resizing, cropping and flipping of an image and its masks by mmcv's rules; normalisation.

Images are 8-bit levels until they are on the device: a quarter of the bytes that workers hand over.
"""

from collections.abc import Iterable
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


class Normalise:
    """Brings images to a device, and there to float32: less ImageNet's mean, over its deviation.

    The bits are those of timm's ToTensor and Normalize on the CPU, on every device.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = device
        # A tensor, since CUDA multiplies by the reciprocal of a number, which gives other bits.
        self._largest = torch.tensor(255.0, device=device)
        self._mean = torch.tensor(MEAN, device=device)[:, None, None]
        self._deviation = torch.tensor(DEVIATION, device=device)[:, None, None]

    def __call__(
        self, pixels: Tensor, memory_format: torch.memory_format = torch.contiguous_format
    ) -> Tensor:
        """Return float32 on the device of `pixels` uint8, both (..., 3, H, W)."""
        # The copy first, as bytes: torch would convert to another type before it copies.
        levels = pixels.to(self._device, non_blocking=True)
        values = levels.to(torch.float32, memory_format=memory_format)
        return values.div_(self._largest).sub_(self._mean).div_(self._deviation)


def clear_padding(images: Tensor, sizes: Iterable[Size]) -> Tensor:
    """Set images (B, 3, H, W) to 0, the mean colour, beyond the size of each; return them."""
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return images


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
