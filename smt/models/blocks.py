"""The parts of SMT (paper, section 3), each once. Everything between parts is (B, H, W, C)."""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smt.config.models import Aggregation, Model
from smt.errors import UserError
from smt.models.attention import repeatable
from smt.models.layers import (
    Depthwise,
    InterleavedPointwise,
    Pointwise,
    ResidualDepthwise,
    batch_norm,
    depthwise,
    image,
    pixels,
)
from smt.models.mixed_precision import cast_parameters, pre_norm, scaled_sum

BLOCK_NORM_EPS = 1e-6
"""LayerNorm's epsilon in blocks and in the norm that closes a stage (released code); the stem and
the patch embeddings have torch's default of 1e-5."""


class Stem(nn.Module):
    """Stage 1's embedding: convolution at stride 2, BatchNorm, ReLU, 2x2 convolution at stride 2.

    It takes images (B, in_chans, H, W) of any size from 4 x 4 and returns (B, H // 4, W // 4, C)
    for even sizes (an odd side is rounded up by the first convolution).
    """

    def __init__(self, in_chans: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, channels, kernel, 2, kernel // 2, bias=False)
        self.batch_norm = nn.BatchNorm1d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.reduce = nn.Conv2d(channels, channels, 2, 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        x = pixels(self.conv(image(pixels(images))))
        # Of the norm's own output: changed in place, a view has its gradient copied twice.
        x = self.relu(self.batch_norm(x.flatten(0, 2))).view_as(x)
        output: Tensor = self.norm(pixels(self.reduce(image(x))))
        return output


class PatchEmbedding(nn.Module):
    """The step into stages 2 to 4: a 3x3 convolution at stride 2, then LayerNorm."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, 2, 1)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, ceil(H / 2), ceil(W / 2), out_channels) of (B, H, W, channels)."""
        output: Tensor = self.norm(pixels(self.conv(image(x))))
        return output


class MLP(nn.Module):
    """Feed-forward with a 3x3 depthwise convolution, added to its input, before the GELU."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, hidden)
        self.depthwise = ResidualDepthwise(hidden, 3)
        self.reduce = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of (B, H, W, C)."""
        output: Tensor = self.reduce(F.gelu(self.depthwise(self.expand(x))))
        return output


class MHMC(nn.Module):
    """Multi-head mixed convolution: head i convolves its channels with a kernel of 3 + 2i."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.head_channels = channels // heads
        self.heads = nn.ModuleList(
            nn.Conv2d(size, size, kernel, padding=kernel // 2, groups=size)
            for size, kernel in ((self.head_channels, 3 + 2 * head) for head in range(heads))
        )

    def convolutions(self) -> list[nn.Conv2d]:
        """Return the convolution of each head."""
        return [cast(nn.Conv2d, head) for head in self.heads]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of (B, H, W, C), heads one after the other in C."""
        parts = image(x).split(self.head_channels, dim=1)
        mixed = [
            depthwise(part, head.weight, head.bias)
            for head, part in zip(self.convolutions(), parts, strict=True)
        ]
        return pixels(torch.cat(mixed, dim=1))


class SAA(nn.Module):
    """Scale-aware aggregation: 1x1 convolution, BatchNorm, GELU, 1x1 convolution.

    `expand` tells the paper's module (`InterleavedPointwise`: heads interleaved, then grouped, C to
    2C) from its ablations (`Pointwise`: no shuffle and no groups).
    """

    def __init__(self, expand: InterleavedPointwise | Pointwise, out_channels: int) -> None:
        super().__init__()
        self.expand = expand
        self.norm = nn.BatchNorm1d(expand.out_channels)
        self.reduce = Pointwise(expand.out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, out_channels) of (B, H, W, C)."""
        output: Tensor = self.reduce(F.gelu(batch_norm(self.norm, self.expand(x))))
        return output


class SAM(nn.Module):
    """Scale-aware modulation: the aggregated heads of one projection multiply another.

    Where the heads do not divide the channels, the projection that they convolve is widened to
    their next multiple, and the aggregation returns to `channels`.
    """

    def __init__(self, channels: int, heads: int, aggregation: Aggregation) -> None:
        super().__init__()
        inner = -(-channels // heads) * heads
        self.value = nn.Linear(channels, channels)
        self.scale = nn.Linear(channels, inner)
        self.mhmc = MHMC(inner, heads)
        self.aggregate = aggregator(aggregation, inner, channels, heads)
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of (B, H, W, C)."""
        modulator = self.aggregate(self.mhmc(self.scale(x)))
        output: Tensor = self.output(modulator * self.value(x))
        return output


def aggregator(kind: Aggregation, inner: int, channels: int, heads: int) -> nn.Module:
    """Return what takes MHMC's `inner` channels to the modulator's `channels`.

    Raises:
        UserError: kind none with heads that do not divide the channels.
    """
    if kind == "none":
        if inner != channels:
            raise UserError(
                f"mhmc_heads: {heads} heads do not divide {channels} channels, and aggregation "
                "none cannot bring them back; valid: a divisor, or another aggregation"
            )
        return nn.Identity()
    if kind == "conv1x1":
        return Pointwise(inner, channels)
    if kind == "dense":
        return SAA(Pointwise(inner, inner), channels)
    if kind == "dense_expand":
        return SAA(Pointwise(inner, 2 * inner), channels)
    return SAA(InterleavedPointwise(inner, heads), channels)


class MSA(nn.Module):
    """Multi-head self-attention; a 3x3 depthwise convolution of the values is added to it."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key = nn.Linear(channels, 2 * channels)
        self.value = nn.Linear(channels, channels)  # apart, to be an image without a copy
        self.depthwise = Depthwise(channels, 3)
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of (B, H, W, C)."""
        batch, height, width, channels = x.shape
        shape = (batch, height * width, -1, self.heads, channels // self.heads)
        value = self.value(x)
        query, key = self.query_key(x).view(shape).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        attended = repeatable(
            F.scaled_dot_product_attention(query, key, value.view(shape)[:, :, 0].transpose(1, 2))
        )
        output: Tensor = self.output(
            attended.transpose(1, 2).reshape(x.shape) + self.depthwise(value)
        )
        return output


class Block(nn.Module):
    """Pre-norm block: x + mixer(norm(x)), then x + mlp(norm(x)), with LayerScale and drop path."""

    scale1: nn.Parameter | None
    scale2: nn.Parameter | None

    def __init__(
        self, channels: int, mixer: nn.Module, hidden: int, layer_scale: float | None, drop: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=BLOCK_NORM_EPS)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(channels, eps=BLOCK_NORM_EPS)
        self.mlp = MLP(channels, hidden)
        self.drop_path_rate = drop
        self.drops_elements = False
        """Whether elements are dropped in place of whole branches, as the release's detection and
        segmentation code has it under the name of drop path."""
        for name in ("scale1", "scale2"):
            scale = None if layer_scale is None else torch.full((channels,), layer_scale)
            self.register_parameter(name, None if scale is None else nn.Parameter(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of (B, H, W, C)."""
        with cast_parameters(self, x):
            x, normalised = pre_norm(self.norm1, x)
            x = self._add(x, self.mixer(normalised), self.scale1)
            x, normalised = pre_norm(self.norm2, x)
            return self._add(x, self.mlp(normalised), self.scale2)

    def _add(self, x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
        """Return x + branch, scaled a channel and dropped an image: one pass over the memory."""
        if self.training and self.drop_path_rate and self.drops_elements:
            branch = F.dropout(branch, self.drop_path_rate)
        elif self.training and self.drop_path_rate:
            keep = 1 - self.drop_path_rate
            mask = x.new_empty(len(x), 1, 1, 1).bernoulli_(keep).div_(keep)
            scale = mask if scale is None else mask * scale
        return x + branch if scale is None else scaled_sum(x, branch, scale)


def block(model: Model, stage: int, mixer: Literal["sam", "msa"], drop: float) -> Block:
    """Return a block of `stage` (0 to 3) of `model` with drop-path rate `drop`."""
    channels = model.widths[stage]
    return Block(
        channels,
        SAM(channels, model.mhmc_heads, model.aggregation)
        if mixer == "sam"
        else MSA(channels, model.msa_heads[stage]),
        int(channels * model.mlp_ratios[stage]),
        model.layer_scale,
        drop,
    )
