"""Anchors: reference boxes at every place of every level of a pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smt.config.heads import Anchors


def base_anchors(anchors: Anchors, stride: int) -> Tensor:
    """Return the anchors of a place (A, 4) around its origin, unrounded; ratio by ratio.

    Their sides are stride * scale * (1 / sqrt(ratio), sqrt(ratio)): the area does not depend on the
    ratio, which is height over width.
    """
    roots = torch.tensor(anchors.ratios, dtype=torch.float64).sqrt()
    scales = torch.tensor(anchors.scales, dtype=torch.float64) * stride
    width = (scales / roots[:, None]).flatten()
    height = (scales * roots[:, None]).flatten()
    return torch.stack([-width, -height, width, height], dim=1).div(2).float()


class GridAnchors(nn.Module):
    """The anchors of levels of `strides`, on the module's device; it has no state to be saved."""

    base: Tensor
    """(levels, A, 4): of a place around its origin."""

    def __init__(self, anchors: Anchors, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = strides
        base = torch.stack([base_anchors(anchors, stride) for stride in strides])
        self.register_buffer("base", base, persistent=False)

    def forward(self, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return the anchors (H_i * W_i * A, 4) of each level: row, column, anchor of the place.

        Those of row r and column c are centred at (c * stride, r * stride), as mmdet has it.
        """
        levels = []
        for (height, width), stride, base in zip(shapes, self.strides, self.base, strict=True):
            x = torch.arange(width, device=base.device, dtype=torch.float32) * stride
            y = torch.arange(height, device=base.device, dtype=torch.float32) * stride
            shift_y, shift_x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack([shift_x, shift_y, shift_x, shift_y], dim=-1).view(-1, 1, 4)
            levels.append((shifts + base).view(-1, 4))
        return levels
