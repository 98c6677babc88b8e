"""Multi-scale deformable attention (Deformable DETR, Zhu et al., 2021): a few sampled places each.

It is written in torch's own operations. Sampling is done in the precision of the places, float32
under autocast, since bfloat16 cannot tell neighbours apart on a large level.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smt.detection.grid_sample import grid_sample
from smt.detection.structures import Size


def sample(values: Tensor, shapes: Sequence[Size], places: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums (B, Q, heads * D) of what `values` are at `places`.

    `values` are (B, S, heads, D): all levels in one row, each row by row, of `shapes` (height,
    width). `places` (B, Q, heads, L, P, 2) are x and y as fractions of a level's width and height,
    padding included; `weights` are (B, Q, heads, L, P). A value stands at the centre of its cell;
    between centres it is interpolated, and beyond the level there are zeros.
    """
    batch, _, heads = places.shape[:3]
    grids = places.mul(2).sub(1).transpose(1, 2).flatten(0, 1)  # (B * heads, Q, L, P, 2), -1 to 1
    weights = weights.to(places.dtype).transpose(1, 2).flatten(0, 1)  # (B * heads, Q, L, P)
    maps = values.to(places.dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (B * heads, D, S)
    sums = grids.new_zeros(())
    levels = maps.split([height * width for height, width in shapes], dim=-1)
    for level, (of_level, shape) in enumerate(zip(levels, shapes, strict=True)):
        sampled = grid_sample(of_level.unflatten(-1, shape), grids[:, :, level])
        # (B * heads, D, Q, P)
        sums = sums + (sampled * weights[:, None, :, level]).sum(-1)  # (B * heads, D, Q)
    output: Tensor = sums.unflatten(0, (batch, heads)).flatten(1, 2).transpose(1, 2)
    return output


class DeformableAttention(nn.Module):
    """Attention to `points` places of each level for each head, which the query itself chooses."""

    def __init__(self, channels: int, *, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.weights = nn.Linear(channels, heads * levels * points)
        self.values = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with equal weights at fixed places: each head's on a ray of its own.

        Rays go around the reference at equal angles, to the edge of a square of half-side 1, 2 and
        so on for each next point, in cells of the level.
        """
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)  # (heads, 2)
        rays = rays / rays.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        ring = rays[:, None, None] * steps[:, None]  # (heads, 1, P, 2)
        with torch.no_grad():
            self.offsets.bias.copy_(ring.expand(-1, self.levels, -1, -1).flatten())
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
        for layer in (self.values, self.output):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.weights, self.values, self.output):
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        queries: Tensor,
        references: Tensor,
        memory: Tensor,
        *,
        shapes: Sequence[Size],
        sides: Tensor,
        padding: Tensor,
    ) -> Tensor:
        """Return (B, Q, C) for `queries` (B, Q, C), positions included, from `memory` (B, S, C).

        `references` are points (B, Q, L, 2), from which offsets count in cells, or boxes (B, Q, L,
        4), centre and sides, from whose centre they count in halves of a side over the points. Both
        are fractions of each level, padding included. `sides` (L, 2) are the levels' widths and
        heights, as `shapes` gives them; `padding` (B, S) says which places are to give zeros.
        """
        values = self.values(memory).masked_fill(padding[..., None], 0)  # (B, S, C)
        offsets = self.offsets(queries).unflatten(-1, (self.heads, self.levels, self.points, 2))
        weights = self.weights(queries).unflatten(-1, (self.heads, -1)).softmax(-1)
        centres = references[:, :, None, :, None, :2]  # (B, Q, 1, L, 1, 2)
        if references.shape[-1] == 2:
            offsets = offsets / sides[:, None]
        else:
            offsets = offsets / self.points * references[:, :, None, :, None, 2:] / 2
        sums = sample(
            values.unflatten(-1, (self.heads, -1)),
            shapes,
            centres + offsets,  # (B, Q, heads, L, P, 2)
            weights.unflatten(-1, (self.levels, self.points)),
        )
        output: Tensor = self.output(sums)
        return output
