"""Convolutions and norms on pixels laid out as (B, H, W, C), the one memory layout of the trunk.

Each layer holds the parameters of the torch layer that it is, so that counting and initialising
need to know torch's types only. An image (B, C, H, W) in torch's channels-last format is the same
memory seen with other axes: `image` and `pixels` change the view and copy nothing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def image(pixels: Tensor) -> Tensor:
    """Return (B, H, W, C) seen as a channels-last image (B, C, H, W)."""
    return pixels.permute(0, 3, 1, 2)


def pixels(image: Tensor) -> Tensor:
    """Return an image (B, C, H, W) as contiguous (B, H, W, C); copies unless it is channels-last.

    The strides are unambiguous: with one channel a plain permute keeps strides that convolutions
    take for the other layout.
    """
    batch, channels, height, width = image.shape
    return image.permute(0, 2, 3, 1).flatten().view(batch, height, width, channels)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as a matrix product over the last axis."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, out_channels) of (B, H, W, channels)."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class InterleavedPointwise(nn.Conv2d):
    """SAA's first convolution: 1x1, doubling, grouped so that a group has one channel of each head.

    Channels come as MHMC leaves them, one head after the other. The paper interleaves them, then
    convolves in groups; here the weight is spread over a dense matrix (zero outside the groups)
    whose columns stand in MHMC's order. Shuffle and grouped convolution become one matrix product.
    """

    eye: Tensor

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, 2 * channels, 1, groups=channels // heads)
        self.heads = heads
        self.register_buffer("eye", torch.eye(channels // heads), persistent=False)

    def dense_weight(self) -> Tensor:
        """Return the weight as (2 channels, channels), columns in MHMC's order.

        Row (group, output) and column (head, group') hold weight[group, output, head] where
        group = group', and 0 elsewhere.
        """
        groups = self.groups
        weight = self.weight.view(groups, 2 * self.heads, self.heads, 1)
        spread = weight * self.eye.view(groups, 1, 1, groups)
        return spread.view(self.out_channels, self.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, 2 channels) of (B, H, W, channels)."""
        return F.linear(x, self.dense_weight(), self.bias)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the depthwise convolution of an image (B, C, H, W), which keeps its size.

    What of the kernel (C, 1, k, k) can only meet padding is cut off, and an image of 2 pixels is
    padded to 3: on images smaller than the kernel, torch's CPU gradients take up to 20 times as
    long as on the next larger ones. Exported code takes every size the one way.
    """
    if torch.compiler.is_exporting():
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    height, width = x.shape[2:]
    kernel, reach = weight.shape[-1], 2 * max(height, width) - 1
    if kernel > reach:
        cut = (kernel - reach) // 2
        weight, kernel = weight[:, :, cut:-cut, cut:-cut], reach
    if kernel == 1:
        product = x * weight.view(1, -1, 1, 1)
        return product if bias is None else product + bias.view(1, -1, 1, 1)
    if min(height, width) < kernel == 3:
        x = F.pad(x, (0, max(0, 3 - width), 0, max(0, 3 - height)))
    out = F.conv2d(x, weight, bias, padding=kernel // 2, groups=len(weight))
    return out[:, :, :height, :width]


class Depthwise(nn.Conv2d):
    """A depthwise convolution that keeps the size."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of (B, H, W, C)."""
        return pixels(depthwise(image(x), self.weight, self.bias))


class ResidualDepthwise(Depthwise):
    """x + depthwise convolution of x, as one convolution: the kernel's centre is raised by 1."""

    identity: Tensor

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, kernel)
        identity = torch.zeros(kernel, kernel)
        identity[kernel // 2, kernel // 2] = 1
        self.register_buffer("identity", identity, persistent=False)

    def kernel_with_identity(self) -> Tensor:
        """Return the weight (C, 1, k, k) that adds the input as well."""
        return self.weight + self.identity

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of (B, H, W, C)."""
        return pixels(depthwise(image(x), self.kernel_with_identity(), self.bias))


def batch_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Return `norm` of (B, H, W, C) over all pixels.

    `norm` is a BatchNorm1d, whose kernel for (pixels, C) is the fastest, or the SyncBatchNorm that
    stands in for it under data parallel training.
    """
    output: Tensor = norm(x.flatten(0, 2)).view_as(x)
    return output
