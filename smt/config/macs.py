"""Multiply-accumulates (MACs) of SMT by formula: from its spec alone, without torch.

They are those that `smt.models.profile` counts in a forward pass: each layer for what it is, not
for how it is computed.
"""

from dataclasses import dataclass

from smt.config.models import Model

IMAGE_CHANNELS = 3
DEPTHWISE = 3 * 3
"""Weights a channel of the depthwise convolutions in MLP and MSA."""


@dataclass(frozen=True)
class Macs:
    """MACs of one image, by what does them."""

    convolution: int = 0
    linear: int = 0
    attention: int = 0
    """The products QK and AV."""

    @property
    def total(self) -> int:
        return self.convolution + self.linear + self.attention

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(
            self.convolution + other.convolution,
            self.linear + other.linear,
            self.attention + other.attention,
        )

    def __mul__(self, pixels: int) -> "Macs":
        return Macs(self.convolution * pixels, self.linear * pixels, self.attention * pixels)


def forward(model: Model, resolution: int, *, num_classes: int) -> Macs:
    """Return the MACs of one forward pass of an image of `resolution` x `resolution` pixels."""
    half = (resolution + 1) // 2  # the stem's first convolution, padded: an odd side is rounded up
    side = half // 2  # its second is not padded
    macs = stem(model, half**2, side**2)
    for stage in range(4):
        if stage:
            side = (side + 1) // 2  # 3x3 at stride 2, padded by 1
            macs += patch_embedding(model.widths[stage - 1], model.widths[stage]) * side**2
        for mixer in model.block_mixers(stage):
            channels = model.widths[stage]
            mix = sam(model, channels) if mixer == "sam" else msa(channels, side**2)
            macs += (mix + mlp(channels, int(channels * model.mlp_ratios[stage]))) * side**2
    # The classifier sees the mean over pixels.
    return macs + Macs(linear=model.widths[-1] * num_classes)


def stem(model: Model, pixels: int, reduced: int) -> Macs:
    """Return the MACs of the stem, whose convolutions give so many `pixels`, then `reduced`."""
    channels = model.widths[0]
    first = pixels * channels * IMAGE_CHANNELS * model.stem_kernel**2  # k x k, 3 to C
    return Macs(convolution=first + reduced * channels * channels * 2 * 2)  # 2 x 2, C to C


def patch_embedding(channels: int, out_channels: int) -> Macs:
    """Return the MACs of a pixel of the step into stages 2 to 4: 3 x 3, dense."""
    return Macs(convolution=channels * out_channels * 3 * 3)


def mlp(channels: int, hidden: int) -> Macs:
    """Return the MACs of a pixel: C to hidden, a depthwise convolution there, hidden to C."""
    return Macs(convolution=DEPTHWISE * hidden, linear=2 * channels * hidden)


def msa(channels: int, pixels: int) -> Macs:
    """Return the MACs of a pixel among `pixels` that attend to each other."""
    return Macs(
        convolution=DEPTHWISE * channels,
        linear=4 * channels * channels,  # Q, K, V, output: C to C each
        attention=2 * pixels * channels,  # QK: each pixel's C with every pixel's; AV the same
    )


def sam(model: Model, channels: int) -> Macs:
    """Return the MACs of a pixel: value and output C to C, the scale's C to `inner`, its heads."""
    heads = model.mhmc_heads
    inner = -(-channels // heads) * heads  # the next multiple of the heads
    convolution = mhmc(inner, heads) + aggregation(model, inner, channels)
    return Macs(convolution=convolution, linear=2 * channels * channels + channels * inner)


def mhmc(inner: int, heads: int) -> int:
    """Return the MACs of a pixel: head i convolves its share of `inner` with (3 + 2i)^2 weights."""
    return inner // heads * sum((3 + 2 * head) ** 2 for head in range(heads))


def aggregation(model: Model, inner: int, channels: int) -> int:
    """Return the MACs of a pixel of what takes MHMC's `inner` channels to `channels`."""
    match model.aggregation:
        case "saa":  # inner to 2 inner in groups of one channel a head, then to C
            return 2 * inner * model.mhmc_heads + 2 * inner * channels
        case "dense_expand":  # the same without groups
            return 2 * inner * inner + 2 * inner * channels
        case "dense":  # inner to inner, then to C
            return inner * inner + inner * channels
        case "conv1x1":
            return inner * channels
        case "none":
            return 0
