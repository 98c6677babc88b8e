"""Effective receptive field: which inputs the central position of an output depends on.

As Luo et al. measure it (Understanding the Effective Receptive Field in Deep Convolutional Neural
Networks, NeurIPS 2016): by the gradient of that position with respect to the input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from smt.models.layers import image as channels_first
from smt.models.smt import SMT
from smt.pictures.maps import recorded

_IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class ReceptiveField:
    """Gradient of the central position of an output, over the pixels of the input."""

    gradient: Tensor
    """(H, W): absolute value, averaged over channels and images."""
    centre: tuple[float, float]
    """Row and column in the input of the middle of that position: between pixels, where a position
    covers an even number of them."""

    def radius(self, share: float) -> float:
        """Return half the side of the smallest square with `share` of the gradient, in pixels.

        It lies around the centre; a radius of r has the pixels that are at most r rows and columns
        away. With a share of 1 it has every pixel that the output depends on.
        """
        rows, columns = (
            (torch.arange(length) - middle).abs()
            for length, middle in zip(self.gradient.shape, self.centre, strict=True)
        )
        distance, order = torch.maximum(rows[:, None], columns[None]).flatten().sort()
        within = self.gradient.flatten().double()[order].cumsum(0)
        return float(distance[torch.searchsorted(within, share * within[-1])])


def receptive_field(network: Callable[[Tensor], Tensor], images: Tensor) -> ReceptiveField:
    """Return the receptive field of (B, C, h, w) features that `network` makes of (B, c, H, W)."""
    (field,) = _fields(lambda image: [network(image)], images)
    return field


def stage_fields(network: SMT, images: Tensor) -> list[ReceptiveField]:
    """Return the receptive field of each stage, from images (B, 3, H, W), normalised.

    It is that of the last block's output: after the stage's closing LayerNorm the channels of a
    position have a sum that hardly depends on the image, and so hardly a gradient.
    """
    last_blocks = {
        number: cast(nn.ModuleList, stage.blocks)[-1] for number, stage in enumerate(network.stages)
    }

    def features(image: Tensor) -> list[Tensor]:
        with recorded(last_blocks) as outputs:
            network.forward_features(image)
        return [channels_first(outputs[number]) for number in last_blocks]

    return _fields(features, images)


def _fields(features_of: Callable[[Tensor], list[Tensor]], images: Tensor) -> list[ReceptiveField]:
    """Return a field for each of the outputs; few images at a time, for the sake of memory."""
    sums: list[Tensor] = []
    sizes: list[torch.Size] = []
    for batch in images.split(_IMAGES_AT_ONCE):
        leaf = batch.clone().requires_grad_()
        outputs = features_of(leaf)
        gradients = [_centre_gradient(output, leaf) for output in outputs]
        sums = [*map(torch.add, sums, gradients)] if sums else gradients
        sizes = [output.shape[2:] for output in outputs]
    return [
        ReceptiveField(total / len(images), _centre(size, images.shape[2:]))
        for total, size in zip(sums, sizes, strict=True)
    ]


def _centre_gradient(output: Tensor, images: Tensor) -> Tensor:
    """Return (H, W): the gradient of the channels' sum at the central position, over all images.

    An image's output depends on no other image: the gradient of all outputs' sum has its own.
    """
    height, width = output.shape[2:]
    position = output[:, :, height // 2, width // 2].sum()
    (gradient,) = torch.autograd.grad(position, images, retain_graph=True)
    return gradient.abs().mean(1).sum(0)


def _centre(output: torch.Size, image: torch.Size) -> tuple[float, float]:
    row, column = (
        (length // 2 + 0.5) * (pixels / length) - 0.5
        for length, pixels in zip(output, image, strict=True)
    )
    return row, column
