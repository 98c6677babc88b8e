"""The feature pyramid: levels of equal channels, each with what the coarser ones have seen."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Extra = Literal["pool", "from_input", "from_output"]
"""Levels coarser than the backbone's: one by max pooling (Mask R-CNN); two convolutions at stride
2, from the backbone's last level (RetinaNet) or from the pyramid's (ATSS)."""


class FeaturePyramid(nn.Module):
    """Feature pyramid network (Lin et al., 2017): biased convolutions, no norm, nearest upsampling.

    `extra` None gives as many levels as there are inputs.
    """

    def __init__(self, widths: Sequence[int], channels: int, extra: Extra | None) -> None:
        super().__init__()
        self.extra = extra
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)
        self.coarser = nn.ModuleList()
        if extra in ("from_input", "from_output"):
            first = widths[-1] if extra == "from_input" else channels
            self.coarser.append(nn.Conv2d(first, channels, 3, 2, 1))
            self.coarser.append(nn.Conv2d(channels, channels, 3, 2, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels (B, channels, H_i, W_i), finest first, of the backbone's."""
        levels = [conv(x) for conv, x in zip(self.lateral, features, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            size = levels[i - 1].shape[-2:]
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=size, mode="nearest")
        levels = [conv(x) for conv, x in zip(self.output, levels, strict=True)]
        if self.extra == "pool":
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        elif self.coarser:
            source = features[-1] if self.extra == "from_input" else levels[-1]
            for conv in self.coarser:
                source = conv(source)  # RetinaNet here has no ReLU between the two
                levels.append(source)
        return levels


def flatten(maps: Sequence[Tensor], values: int) -> Tensor:
    """Return predictions (B, anchors, values) of maps (B, A * values, H_i, W_i).

    The order is that of anchors: level, row, column, anchor of the place.
    """
    return torch.cat(
        [
            feature_map.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, values))
            for feature_map in maps
        ],
        dim=1,
    )
