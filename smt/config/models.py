"""Architectures: the variants and ablations of `params/models.yaml`, and models of timm."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, JsonValue
from pydantic_core import PydanticCustomError

from smt.config.types import Name, Positive, PositiveFloat, Problem, Strict, divisors

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


SET_BY_EXPERIMENT = {
    "num_classes": "the data set",
    "in_chans": "the data, which are RGB images",
    "img_size": "the recipe's resolution",
    "drop_path_rate": "drop_path of the experiment or of its recipe",
    "features_only": "a head",
    "out_indices": "a head",
}
"""Keyword arguments of timm's models that other keys of params decide, and which."""

FILES_OF_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path",
                    "cache_dir")  # fmt: skip
"""Keyword arguments that would load weights which no run of the DAG has trained."""


def _require_plain_name(text: object) -> object:
    """Refuse a name of timm as hubs show it, which pattern alone would not explain."""
    plain = text.rpartition("/")[2].partition(".")[0] if isinstance(text, str) else text
    if plain != text:
        raise PydanticCustomError(
            "timm",
            "give timm's name without what stands before a slash, and without the tag of weights "
            "after the dot: {name}",
            {"name": plain},
        )
    return text


TimmName = Annotated[Name, BeforeValidator(_require_plain_name)]
"""Name of a model in timm, without the tag of pretrained weights."""


class TimmModel(Strict):
    """A model of timm, trained from scratch as SMT is: `model: {timm: NAME}` of an experiment."""

    timm: TimmName
    title: str
    """How tables call it [the name in timm]."""
    name: Name
    """What stands for it among the models of the project [the name in timm]."""
    arguments: dict[str, JsonValue] = {}
    """Keyword arguments of timm.create_model, such as `embed_dim: 64`."""

    @property
    def text(self) -> str:
        """Name and arguments as a call: the same text is the same architecture."""
        given = ", ".join(f"{key}={value}" for key, value in sorted(self.arguments.items()))
        return f"{self.timm}({given})" if given else self.timm

    def sized_text(self, resolution: int, classes: int) -> str:
        """Return what stands in params/sizes.yaml for it as a classifier."""
        return f"{self.text} at {resolution}, {classes} classes"

    def problems(self) -> Iterator[Problem]:
        """Yield the arguments that are not its own to give."""
        for key in self.arguments:
            if key in SET_BY_EXPERIMENT:
                yield ("arguments", key), f"decided by {SET_BY_EXPERIMENT[key]}; remove it"
            if key in FILES_OF_WEIGHTS:
                yield (
                    ("arguments", key),
                    "weights come from no file: give the experiment a `start`, or none; remove it",
                )


class TimmSize(Strict):
    """What `smt profile --update` found of a classifier of timm."""

    macs: Positive
    """MACs of a forward pass of one image, attention included."""
    params: Positive
    drop_path: bool
    """Whether it has branches that can be dropped."""
