"""What `params/models.yaml` holds: architectures, the paper's variants and ablations."""

from collections.abc import Iterator
from typing import Literal

from smt.config.types import Positive, PositiveFloat, Problem, Strict, divisors

Mixer = Literal["sam", "msa", "alternate", "half"]


Aggregation = Literal["saa", "none", "conv1x1", "dense", "dense_expand"]


class Model(Strict):
    """An architecture: a variant of the paper or an ablation. Four values are one a stage."""

    title: str
    """How tables call it."""
    widths: tuple[Positive, Positive, Positive, Positive]
    """Channels."""
    depths: tuple[Positive, Positive, Positive, Positive]
    """Blocks."""
    mlp_ratios: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat]
    """Hidden channels of the MLP over the stage's channels."""
    stem_kernel: Literal[3, 7]
    """Kernel of the stem's first convolution."""
    layer_scale: PositiveFloat | None
    """Initial value of LayerScale, or null for none."""
    mixers: tuple[Mixer, Mixer, Mixer, Mixer]
    """sam, msa, alternate (SAM first) or half (first half SAM, then MSA)."""
    mhmc_heads: Positive
    """Heads of MHMC; head i convolves with a kernel of 3 + 2i."""
    msa_heads: tuple[Positive, Positive, Positive, Positive]
    """Heads of MSA; read only in stages whose mixer has MSA."""
    aggregation: Aggregation
    """What follows MHMC: SAA, or what an ablation puts in its place."""

    def block_mixers(self, stage: int) -> tuple[Literal["sam", "msa"], ...]:
        """Return the mixer of each block of `stage` (0 to 3)."""
        depth, mixer = self.depths[stage], self.mixers[stage]
        if mixer == "alternate":
            return tuple("msa" if block % 2 else "sam" for block in range(depth))
        if mixer == "half":
            # With an odd depth the middle block is SAM.
            return tuple("sam" if 2 * block < depth else "msa" for block in range(depth))
        return (mixer,) * depth

    def problems(self) -> Iterator[Problem]:
        """Yield what is inconsistent, by key."""
        for stage, (width, heads) in enumerate(zip(self.widths, self.msa_heads, strict=True)):
            mixers = self.block_mixers(stage)
            if "msa" in mixers and width % heads:
                yield (
                    ("msa_heads",),
                    f"{heads} heads do not divide the {width} channels of stage {stage + 1}; "
                    f"valid: {divisors(width)}",
                )
            if "sam" in mixers and self.mhmc_heads > width:
                yield (
                    ("mhmc_heads",),
                    f"{self.mhmc_heads} heads for the {width} channels of stage {stage + 1}; "
                    f"valid: 1 to {width}",
                )
            if self.mixers[stage] in ("alternate", "half") and len(set(mixers)) < 2:
                yield (
                    ("mixers",),
                    f"stage {stage + 1} has {self.depths[stage]} block, too few to be "
                    f"{self.mixers[stage]}; valid: 2 blocks or more, or the mixer sam or msa",
                )
