"""UPerNet (Xiao et al., 2018) as mmseg 0.30 has it, with a fully convolutional auxiliary head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smt.config import heads
from smt.datasets.label_maps import NO_CLASS
from smt.models.profile import Calls
from smt.models.pyramid import Trunk
from smt.models.sync_norm import SyncBatchNorm
from smt.segmentation.resample import average, resize

AUXILIARY_LEVEL = 2
"""Which of the backbone's levels the auxiliary head sees: stage 3."""


class ConvNorm(nn.Module):
    """Convolution without bias that keeps the size, synchronised BatchNorm, ReLU."""

    def __init__(self, channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = SyncBatchNorm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H, W) of (B, channels, H, W)."""
        output: Tensor = self.relu(self.norm(self.conv(x)))
        return output


class PixelClassifier(nn.Module):
    """Dropout of whole channels, then a 1x1 convolution to logits."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.conv = nn.Conv2d(channels, classes, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, classes, H, W) of (B, channels, H, W)."""
        logits: Tensor = self.conv(self.dropout(x))
        return logits


class PyramidPooling(nn.Module):
    """Averages over grids of several sizes beside what they were made of (PSPNet)."""

    def __init__(self, width: int, channels: int, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = tuple(sides)
        self.branches = nn.ModuleList(ConvNorm(width, channels, 1) for _ in sides)
        self.bottleneck = ConvNorm(width + len(self.sides) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels, H, W) of (B, width, H, W)."""
        size = _size(x)
        pooled = [
            resize(branch(average(x, side)), size)
            for branch, side in zip(self.branches, self.sides, strict=True)
        ]
        output: Tensor = self.bottleneck(torch.cat([x, *pooled], dim=1))
        return output


class Decoder(nn.Module):
    """UPerNet's head: pyramid pooling of the last level, a feature pyramid, all levels fused."""

    def __init__(self, widths: Sequence[int], head: heads.UPerNet, classes: int) -> None:
        super().__init__()
        *finer, last = widths
        channels = head.channels
        self.pooling = PyramidPooling(last, channels, head.pools)
        self.lateral = nn.ModuleList(ConvNorm(width, channels, 1) for width in finer)
        self.output = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in finer)
        self.fuse = ConvNorm(len(widths) * channels, channels, 3)
        self.classifier = PixelClassifier(channels, classes, head.dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, classes, H_0, W_0) of levels (B, C_i, H_i, W_i), finest first."""
        levels = [conv(x) for conv, x in zip(self.lateral, features[:-1], strict=True)]
        levels.append(self.pooling(features[-1]))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resize(levels[i], _size(levels[i - 1]))
        levels[:-1] = [conv(x) for conv, x in zip(self.output, levels[:-1], strict=True)]
        together = [resize(level, _size(levels[0])) for level in levels]
        logits: Tensor = self.classifier(self.fuse(torch.cat(together, dim=1)))
        return logits


class UPerNet(nn.Module):
    """A segmenter: the backbone, UPerNet's head, and in training an auxiliary head on stage 3.

    It takes images (B, 3, H, W) of any size from 32 x 32, normalised. Weights are initialised from
    torch's global generator.
    """

    def __init__(self, backbone: Trunk, *, head: heads.UPerNet, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = Decoder(backbone.widths, head, classes)
        width = backbone.widths[AUXILIARY_LEVEL]
        self.auxiliary = nn.Sequential(
            ConvNorm(width, head.auxiliary_channels, 3),
            PixelClassifier(head.auxiliary_channels, classes, head.dropout),
        )
        self.auxiliary_weight = head.auxiliary_weight

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the losses of a batch by name, scalars whose sum is minimised.

        `labels` are (B, H, W) int64, NO_CLASS where there is none.
        """
        features = self.backbone(images)
        auxiliary = self.auxiliary(features[AUXILIARY_LEVEL])
        return {
            "segment": pixel_loss(self.decoder(features), labels),
            "auxiliary": self.auxiliary_weight * pixel_loss(auxiliary, labels),
        }

    def logits(self, images: Tensor) -> Tensor:
        """Return (B, classes, H / 4, W / 4)."""
        logits: Tensor = self.decoder(self.backbone(images))
        return logits

    def calls(self, features: list[Tensor], size: tuple[int, int]) -> Calls:
        """Return what prediction runs on `features`: the auxiliary head takes no part."""
        return {"decoder": [(self.decoder, (features,))]}


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of logits (B, classes, h, w), enlarged to labels (B, H, W).

    The mean is over all pixels, those without a class among them, which count as 0 (mmseg's
    default): a crop that is mostly padding weighs less.
    """
    enlarged = resize(logits, _size(labels))
    # A sum inside cross_entropy would not be deterministic on GPUs.
    return F.cross_entropy(enlarged, labels, ignore_index=NO_CLASS, reduction="none").mean()


def _size(x: Tensor) -> tuple[int, int]:
    height, width = x.shape[-2:]
    return height, width
