"""RoIAlign (He et al., 2017) with a gradient that is deterministic on GPUs, in bounded memory.

torchvision's kernel adds gradients in whatever order threads come. Asked for deterministic
algorithms, its Python function computes with indices in place of the kernel, which takes (K, C, R,
R, H, W) elements: terabytes for a detector. Here the kernel computes the features in any case.
Their gradient, where it has to be deterministic, is a product with two matrices a box: what a bin
has of a cell is the product of what it has of the cell's row and of its column.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor

ADAPTIVE = -1
"""Sampling ratio by which a bin has as many samples as it covers cells."""

_ELEMENTS = 2**25
"""Most elements of an intermediate result of the gradient: 128 MiB in float32."""


def roi_align(
    features: Tensor,
    boxes: Tensor,
    resolution: int,
    *,
    counts: Sequence[int] | None = None,
    most: int | None = None,
    scale: float = 1.0,
    sampling_ratio: int = ADAPTIVE,
) -> Tensor:
    """Return features (K, C, resolution, resolution), each the mean of samples in a bin of a box.

    `features` are (B, C, H, W); `boxes` (K, 5) are image, x1, y1, x2, y2, in pixels of which a cell
    has 1 / `scale`. Pixel i spans i to i + 1 (aligned). `counts` are the boxes of each image, which
    then come image by image; they are needed where features have a gradient. `most` are the most
    samples of a bin along an axis (`bin_samples`), or more; without it a gradient on a GPU waits.
    """
    if counts is not None and features.requires_grad and _needs_care(features):
        pooled: Tensor = _RoIAlign.apply(
            features, boxes, tuple(counts), most, resolution, scale, sampling_ratio
        )
        return pooled
    return _pooled(features, boxes, resolution, scale, sampling_ratio)


def needs_most(levels: Sequence[Tensor], sampling_ratio: int) -> bool:
    """Return whether `roi_align` has a use for `most`, with any of `levels` for its features."""
    return sampling_ratio <= 0 and any(
        features.requires_grad and _needs_care(features) for features in levels
    )


def _needs_care(features: Tensor) -> bool:
    """Return whether the kernel's gradient is not what is asked for; on a CPU it always is."""
    return features.device.type != "cpu" and torch.are_deterministic_algorithms_enabled()


def _pooled(
    features: Tensor, boxes: Tensor, resolution: int, scale: float, sampling_ratio: int
) -> Tensor:
    pooled: Tensor = torch.ops.torchvision.roi_align(
        features, boxes, scale, resolution, resolution, sampling_ratio, True
    )
    return pooled


class _RoIAlign(torch.autograd.Function):
    """torchvision's features with a deterministic gradient."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, boxes: Tensor, counts: tuple[int, ...], most: int | None,
        resolution: int, scale: float, sampling_ratio: int,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(boxes)
        ctx.arguments = features.shape, counts, most, resolution, scale, sampling_ratio
        return _pooled(features, boxes, resolution, scale, sampling_ratio)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (boxes,) = ctx.saved_tensors
        with torch.autocast(boxes.device.type, enabled=False):
            gradient = gradient_of_features(gradients[0], boxes, *ctx.arguments)
        return gradient, None, None, None, None, None, None


def gradient_of_features(
    gradient: Tensor,
    boxes: Tensor,
    size: Sequence[int],
    counts: Sequence[int],
    most: int | None,
    resolution: int,
    scale: float,
    sampling_ratio: int,
) -> Tensor:
    """Return the gradient (B, C, H, W) of features of `size`, by `gradient` (K, C, R, R) of bins.

    The other arguments are those of `roi_align`.
    """
    channels, height, width = size[1:]
    whole = gradient.new_zeros(len(counts), channels * height, width)
    corners, lengths = _grid(boxes, scale)
    bins = lengths / resolution
    if sampling_ratio > 0:
        samples, most = torch.full_like(bins, sampling_ratio), sampling_ratio
    else:
        samples = _adaptive(bins)
    if most is None:
        most = int(samples.max()) if len(boxes) else 0
    if most == 0:
        return whole.view(*size)
    of_a_box = resolution * max(channels * height, most * max(height, width))
    for image, rows in _pieces(counts, max(_ELEMENTS // of_a_box, 1)):
        down, across = (
            _weights(corners[rows, axis], bins[rows, axis], samples[rows, axis], most, cells,
                     resolution)
            for axis, cells in ((1, height), (0, width))
        )  # fmt: skip
        # (K, R, C, R) @ (K, 1, R, H): columns of bins, channels, rows of cells
        tall = gradient[rows].permute(0, 3, 1, 2) @ down[:, None]
        tall = tall.reshape(-1, channels * height)  # (K * R, C * H)
        whole[image].addmm_(tall.T, across.flatten(0, 1))
    return whole.view(*size)


def bin_samples(boxes: Tensor, scales: Tensor, resolution: int) -> Tensor:
    """Return how many samples (K, 2) a bin of each box has along x and y, in the boxes' type.

    Boxes (K, 5) are those of `roi_align`, `scales` (K, 1) their scales; the ratio is adaptive.
    """
    return _adaptive(_grid(boxes, scales)[1] / resolution)


def _adaptive(bins: Tensor) -> Tensor:
    return bins.ceil().clamp(min=0)


def _grid(boxes: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the corners (K, 2) of boxes, x and y in cells from the first one's centre; sides."""
    first, last = boxes[:, 1:3] * scale - 0.5, boxes[:, 3:5] * scale - 0.5
    return first, last - first


def _pieces(counts: Sequence[int], most: int) -> Iterator[tuple[int, slice]]:
    """Yield images and their boxes, as many at a time as may be."""
    start = 0
    for image, count in enumerate(counts):
        for first in range(start, start + count, most):
            yield image, slice(first, min(first + most, start + count))
        start += count


def _weights(
    corners: Tensor, bins: Tensor, samples: Tensor, most: int, cells: int, resolution: int
) -> Tensor:
    """Return what bins have of cells along one axis, (K, resolution, cells).

    Boxes begin at `corners` (K,); their bins are `bins` (K,) long and have `samples` (K,), each of
    which lies between two cells' centres. Beyond the first and the last there is one cell's width
    of the same value, and nothing further out.
    """
    of_bins = torch.arange(resolution, device=bins.device, dtype=bins.dtype)[:, None]
    of_samples = torch.arange(most, device=bins.device, dtype=bins.dtype)
    per_bin = samples.clamp(min=1)[:, None, None]
    step = bins[:, None, None]
    places = corners[:, None, None] + of_bins * step + (of_samples + 0.5) * step / per_bin
    counted = (of_samples < samples[:, None, None]) & (places >= -1) & (places <= cells)
    places = places.clamp(0, cells - 1)[..., None]  # (K, resolution, most, 1)
    share = (1 - (places - torch.arange(cells, device=bins.device)).abs()).clamp(min=0)
    return (share * counted[..., None]).sum(2) / per_bin
