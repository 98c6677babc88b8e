"""Random erasing (Zhong et al., 2020) in two steps: a worker draws the noise, the device writes it.

The noise takes the place of normalised values, which are there on the device alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Erasure(NamedTuple):
    """A rectangle of an image, and the noise that takes its place."""

    top: int
    left: int
    noise: Tensor
    """(3, height, width) float32."""


class Erasures(NamedTuple):
    """Those of a batch; a tuple, whose memory DataLoader pins where there is a GPU."""

    rectangles: list[tuple[int, int, int, int, int]]
    """Number in the batch, top, left, height and width of each."""
    noise: Tensor
    """(3 x pixels of all rectangles,) float32: a worker hands over one tensor for all of them."""

    @classmethod
    def of(cls, erasures: Sequence[Erasure | None]) -> "Erasures":
        """Return what is erased of the images of a batch."""
        drawn = [(number, each) for number, each in enumerate(erasures) if each is not None]
        rectangles = [
            (number, each.top, each.left, each.noise.shape[1], each.noise.shape[2])
            for number, each in drawn
        ]
        noise = [each.noise.flatten() for _, each in drawn]
        return cls(rectangles, torch.cat(noise) if noise else torch.empty(0))

    def write(self, images: Tensor) -> Tensor:
        """Write the noise to normalised images (B, 3, R, R) float32, and return them."""
        noise = self.noise.to(images.device, non_blocking=True)
        parts = noise.split([3 * height * width for *_, height, width in self.rectangles])
        for (number, top, left, height, width), part in zip(self.rectangles, parts, strict=True):
            images[number, :, top : top + height, left : left + width] = part.view(3, height, width)
        return images


def draw_erasure(erasing: Callable[[Any], Any], size: tuple[int, int]) -> Erasure | None:
    """Return what timm's RandomErasing, with one rectangle at most, does to an image of `size`.

    `size` is its width and height. Draws what timm draws from Python's and torch's generators.
    """
    target = _Target(size)
    erasing(target)
    return target.erasure


class _Target:
    """Stands for a normalised image in RandomErasing: keeps what is written, and where."""

    dtype = torch.float32

    def __init__(self, size: tuple[int, int]) -> None:
        self._width, self._height = size
        self.erasure: Erasure | None = None

    def size(self) -> tuple[int, int, int]:
        return 3, self._height, self._width

    def __setitem__(self, where: tuple[slice, slice, slice], noise: Tensor) -> None:
        _, rows, columns = where
        self.erasure = Erasure(rows.start, columns.start, noise)
