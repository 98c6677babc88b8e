"""The levels of features that DINO's transformer sees, and where their places lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smt.config.heads import DINO
from smt.detection.structures import Size
from smt.detection.transfer import to_device


class Neck(nn.Module):
    """A 1 x 1 convolution on each level, a 3 x 3 at stride 2 for one more; GroupNorm after each."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(width, channels, 1) for width in widths]
        convolutions.append(nn.Conv2d(widths[-1], channels, 3, 2, 1))
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
        self.projections = nn.ModuleList(
            nn.Sequential(convolution, nn.GroupNorm(DINO.NORM_GROUPS, channels))
            for convolution in convolutions
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return maps (B, channels, H_i, W_i) of the backbone's levels and of the coarser one."""
        sources = [*features, features[-1]]
        return [project(x) for project, x in zip(self.projections, sources, strict=True)]


@dataclass(frozen=True)
class Levels:
    """Features of all levels in one row of S places: level, row, column.

    Places are x and y. Those of the padding have values too, but no meaning: they are told by
    `padding`.
    """

    features: Tensor
    """(B, S, C)."""
    shapes: list[Size]
    """Of each level."""
    sides: Tensor
    """(L, 2): widths and heights of the levels, float32."""
    valid: Tensor
    """(B, L, 2): which part of a level's width and height is the image's, not padding."""
    centres: Tensor
    """(B, S, 2): of the places' cells, as fractions of the unpadded image."""
    ends: Tensor
    """(B, S, 2): the same of the cells' last corners."""
    padding: Tensor
    """(B, S) bool."""

    def split(self, places: Tensor) -> tuple[Tensor, ...]:
        """Return what stands at the places (B, S, ...) of each level."""
        sizes = [height * width for height, width in self.shapes]
        levels: tuple[Tensor, ...] = places.split(sizes, dim=1)
        return levels


def levels_of(maps: Sequence[Tensor], image: Size, sizes: Sequence[Size]) -> Levels:
    """Return the levels of a batch, whose images fill `sizes` of the padded size `image`.

    A place is the image's where the nearest pixel to the first corner of its cell is, which is how
    the reference scales its mask.
    """
    shapes = [(x.shape[-2], x.shape[-1]) for x in maps]
    device = maps[0].device
    filled = torch.tensor(  # (B, L, 2) cells
        [[_filled(shape, image, size) for shape in shapes] for size in sizes],
        dtype=torch.float32,
    )
    filled = to_device(filled, device)
    sides = to_device(torch.tensor(shapes, dtype=torch.float32).flip(-1), device)  # (L, 2)
    centres, ends, padding = [], [], []
    for level, (height, width) in enumerate(shapes):
        x = torch.arange(width, device=device).expand(height, width)
        y = torch.arange(height, device=device)[:, None].expand(height, width)
        cells = torch.stack([x, y], dim=-1).view(-1, 2).float()  # (H_i * W_i, 2)
        cells_filled = filled[:, level, None]  # (B, 1, 2)
        centres.append((cells + 0.5) / cells_filled)
        ends.append((cells + 1) / cells_filled)
        padding.append((cells >= cells_filled).any(-1))
    return Levels(
        features=torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1),
        shapes=shapes,
        sides=sides,
        valid=filled / sides,
        centres=torch.cat(centres, dim=1),
        ends=torch.cat(ends, dim=1),
        padding=torch.cat(padding, dim=1),
    )


def _filled(shape: Size, image: Size, size: Size) -> tuple[int, int]:
    """Return how many columns and rows of a level an image fills: those that start inside it."""
    rows, columns = (
        -(-cells * inside // pixels)
        for cells, inside, pixels in zip(shape, size, image, strict=True)
    )
    return columns, rows
