"""Bilinear sampling of maps whose gradient is deterministic on GPUs.

torch's kernel adds the gradients of a map in whatever order threads come, and has no other form.
Here they are added by `index_put_`, which sorts them first where it has to be deterministic.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BILINEAR, _ZEROS = 0, 0
"""torch's numbers for interpolation and padding."""


def grid_sample(maps: Tensor, grid: Tensor) -> Tensor:
    """Return what maps (N, C, H, W) are at the places of `grid` (N, h, w, 2): (N, C, h, w).

    Places are x and y, -1 and 1 the outer edges of the first and the last cell. A value stands at
    the centre of its cell; between centres it is interpolated, and beyond the map there are zeros.
    """
    if maps.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return F.grid_sample(maps, grid, align_corners=False)
    sampled: Tensor = _GridSample.apply(maps, grid)
    return sampled


class _GridSample(torch.autograd.Function):
    """torch's sampling with a deterministic gradient."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(maps, grid)
        return F.grid_sample(maps, grid, align_corners=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        maps, grid = ctx.saved_tensors
        of_maps = of_grid = None
        if ctx.needs_input_grad[0]:
            of_maps = gradient_of_maps(gradients[0], maps.shape, grid)
        if ctx.needs_input_grad[1]:
            of_grid = _gradient_of_grid(gradients[0], maps, grid)
        return of_maps, of_grid


def _gradient_of_grid(gradient: Tensor, maps: Tensor, grid: Tensor) -> Tensor:
    """Return torch's own: each place has its own sum, so it is deterministic as it is.

    torch says otherwise of the kernel as a whole, which is not asked for the maps' gradient here.
    """
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    enabled = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        of_both: tuple[Tensor, Tensor] = torch.ops.aten.grid_sampler_2d_backward(
            gradient, maps, grid, _BILINEAR, _ZEROS, False, [False, True]
        )
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    return of_both[1]


def gradient_of_maps(gradient: Tensor, size: torch.Size, grid: Tensor) -> Tensor:
    """Return the gradient of maps of `size` (N, C, H, W) by `gradient` (N, C, h, w) of samples."""
    number, channels, height, width = size
    whole = gradient.new_zeros(number * height * width, channels)
    samples = gradient.permute(0, 2, 3, 1)  # (N, h, w, C)
    first = torch.arange(number, device=grid.device)[:, None, None] * (height * width)
    for rows, columns, weights in _corners(grid, height, width):
        cells = (first + rows * width + columns).flatten()
        values = (samples * weights[..., None]).flatten(0, 2)  # (N * h * w, C)
        whole.index_put_((cells,), values, accumulate=True)
    return whole.view(number, height, width, channels).permute(0, 3, 1, 2)


def _corners(grid: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield rows, columns (N, h, w) and weights of the four cells around each place of `grid`.

    A cell beyond the map has no weight, and the number of the nearest one in it.
    """
    x = ((grid[..., 0] + 1) * width - 1) / 2
    y = ((grid[..., 1] + 1) * height - 1) / 2
    left, top = x.floor(), y.floor()
    for rows, row_weights in ((top, top + 1 - y), (top + 1, y - top)):
        for columns, column_weights in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
            yield (
                rows.clamp(0, height - 1).long(),
                columns.clamp(0, width - 1).long(),
                row_weights * column_weights * inside,
            )
