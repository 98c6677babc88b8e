"""SMT written straight from the paper's equations: the baseline that `model.py` measures against.

Tokens (B, N, C) between layers, seen as images (B, C, H, W) and back around every convolution; one
convolution a head, then a shuffle and a grouped convolution; attention with an explicit softmax.
1x1 convolutions are convolutions of images. Parameters have the names of the released checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smt.config.models import Model


def to_image(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    # Not made contiguous: the image is channels-last then, which convolutions take as it is. With a
    # copy here inference takes 1.26 times as long on a CPU, and the baseline would flatter ours.
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *size)


def to_tokens(image: Tensor) -> Tensor:
    return image.flatten(2).transpose(1, 2).contiguous()


class DepthwiseTokens(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return to_tokens(self.dwconv(to_image(x, size)))


class MLP(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = DepthwiseTokens(hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.fc1(x)
        return self.fc2(F.gelu(x + self.dwconv(x, size)))


class SAM(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, width = heads, channels // heads
        self.v = nn.Linear(channels, channels)
        self.s = nn.Linear(channels, channels)
        for head in range(heads):
            conv = nn.Conv2d(width, width, 3 + 2 * head, padding=1 + head, groups=width)
            self.add_module(f"local_conv_{head + 1}", conv)
        self.proj0 = nn.Conv2d(channels, 2 * channels, 1, groups=width)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.proj1 = nn.Conv2d(2 * channels, channels, 1)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        scales = to_image(self.s(x), size).chunk(self.heads, dim=1)
        convs = (self.get_submodule(f"local_conv_{head + 1}") for head in range(self.heads))
        mixed = [conv(scale) for conv, scale in zip(convs, scales, strict=True)]
        shuffled = torch.stack(mixed, dim=2).flatten(1, 2)  # channel j of every head, then j + 1
        modulator = self.proj1(F.gelu(self.bn(self.proj0(shuffled))))
        return self.proj(to_tokens(modulator) * self.v(x))


class MSA(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.local_conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        batch, tokens, channels = x.shape
        split = (batch, tokens, -1, self.heads, channels // self.heads)
        query = self.q(x).view(split).permute(2, 0, 3, 1, 4)[0]
        key, value = self.kv(x).view(split).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
        attended = (weights @ value).transpose(1, 2).reshape(x.shape)
        local = self.local_conv(to_image(value.transpose(1, 2).reshape(x.shape), size))
        return self.proj(attended + to_tokens(local))


class Block(nn.Module):
    def __init__(self, model: Model, stage: int, mixer: str) -> None:
        super().__init__()
        channels = model.widths[stage]
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        sam = mixer == "sam"
        self.attn = (
            SAM(channels, model.mhmc_heads) if sam else MSA(channels, model.msa_heads[stage])
        )
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MLP(channels, int(channels * model.mlp_ratios[stage]))
        self.layer_scale = model.layer_scale is not None
        if self.layer_scale:
            self.gamma_1 = nn.Parameter(torch.ones(channels))
            self.gamma_2 = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        mixed = self.attn(self.norm1(x), size)
        x = x + (self.gamma_1 * mixed if self.layer_scale else mixed)
        fed = self.mlp(self.norm2(x), size)
        return x + (self.gamma_2 * fed if self.layer_scale else fed)


class PatchEmbedding(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out_channels, 3, 2, 1)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        image = self.proj(image)
        return self.norm(to_tokens(image)), (image.shape[2], image.shape[3])


class Stem(nn.Module):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(3, channels, kernel, 2, kernel // 2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 2, 2),
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        image = self.conv(image)
        return self.norm(to_tokens(image)), (image.shape[2], image.shape[3])


class PlainSMT(nn.Module):
    """Images (B, 3, H, W) to logits (B, num_classes); a model with SAA and heads that divide."""

    def __init__(self, model: Model, num_classes: int) -> None:
        super().__init__()
        for stage, channels in enumerate(model.widths):
            embed = (
                PatchEmbedding(model.widths[stage - 1], channels)
                if stage
                else Stem(channels, model.stem_kernel)
            )
            mixers = model.block_mixers(stage)
            blocks = nn.ModuleList(Block(model, stage, mixer) for mixer in mixers)
            self.add_module(f"patch_embed{stage + 1}", embed)
            self.add_module(f"block{stage + 1}", blocks)
            self.add_module(f"norm{stage + 1}", nn.LayerNorm(channels, eps=1e-6))
        self.head = nn.Linear(model.widths[-1], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        tokens = image
        for stage in range(1, 5):
            tokens, size = self.get_submodule(f"patch_embed{stage}")(image)
            for block in self.get_submodule(f"block{stage}").children():
                tokens = block(tokens, size)
            tokens = self.get_submodule(f"norm{stage}")(tokens)
            if stage < 4:
                image = to_image(tokens, size)
        return self.head(tokens.mean(dim=1))
