"""Features and logits on another grid: averaged, or interpolated between pixels' centres.

Both are linear along each axis. Where torch is asked for deterministic algorithms they are computed
as products with the two matrices: on GPUs the gradient of torch's own pooling has no deterministic
form, and that of its interpolation a slow one that takes several times the memory.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
"""Height and width."""


def resize(x: Tensor, size: Size) -> Tensor:
    """Return (B, C, *size) of (B, C, H, W): bilinear, corners of images rather than of pixels."""
    if tuple(x.shape[-2:]) == size:
        return x
    if not torch.are_deterministic_algorithms_enabled():
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    one_axis = partial(F.interpolate, mode="linear", align_corners=False)
    return _along_both_axes(x, one_axis, size)


def average(x: Tensor, side: int) -> Tensor:
    """Return (B, C, side, side) of (B, C, H, W): the means of side x side cells, which may share.

    Cell i reaches from pixel floor(i H / side) to pixel ceil((i + 1) H / side).
    """
    if not torch.are_deterministic_algorithms_enabled():
        return F.adaptive_avg_pool2d(x, side)
    return _along_both_axes(x, F.adaptive_avg_pool1d, (side, side))


def _along_both_axes(x: Tensor, one_axis: Callable[..., Tensor], size: Size) -> Tensor:
    """Return what a linear operation on (B, C, length) makes of rows and then of columns.

    In the precision of `x`, as torch's own pooling and interpolation are also under autocast.
    """
    with torch.autocast(x.device.type, enabled=False):
        for axis, length in zip((-2, -1), size, strict=True):
            unit = torch.eye(x.shape[axis], device=x.device, dtype=x.dtype)
            matrix = one_axis(unit[None], length)[0]  # (length before, length)
            x = x @ matrix if axis == -1 else matrix.T @ x
    return x
