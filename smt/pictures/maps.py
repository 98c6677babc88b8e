"""What scale-aware modulation computes inside a network: modulators, and the heads of MHMC."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from smt.errors import UserError
from smt.models.blocks import SAM, Block
from smt.models.smt import SMT

Key = TypeVar("Key")


def last_sam(network: SMT) -> dict[int, SAM]:
    """Return the last SAM of each stage that has one, by the stage's number (from 1)."""
    found = {}
    for number, stage in enumerate(network.stages, start=1):
        mixers = (cast(Block, block).mixer for block in cast(nn.ModuleList, stage.blocks))
        for mixer in mixers:
            if isinstance(mixer, SAM):
                found[number] = mixer
    return found


def require_stage(network: SMT, stage: int) -> SAM:
    """Return the last SAM of `stage` (from 1).

    Raises:
        UserError: the network has no such stage, or that stage has no SAM.
    """
    sams = last_sam(network)
    if stage not in sams:
        valid = ", ".join(map(str, sams)) or "none: every block of this model is MSA"
        raise UserError(
            f"stage {stage}: {network.spec.title} has no scale-aware modulation there; stages "
            f"that have it: {valid}"
        )
    return sams[stage]


@torch.inference_mode()
def modulators(network: SMT, images: Tensor) -> dict[int, Tensor]:
    """Return the magnitude (B, h, w) of the modulator of each stage's last SAM.

    The modulator is what multiplies the values: SAA's output, or what an ablation has in its place.
    `images` are (B, 3, H, W), normalised; h and w are H and W over the stage's stride.
    """
    modules = {stage: sam.aggregate for stage, sam in last_sam(network).items()}
    with recorded(modules) as outputs:
        network(images)
    return {stage: magnitude(output) for stage, output in outputs.items()}


@torch.inference_mode()
def head_outputs(network: SMT, images: Tensor, stage: int) -> list[Tensor]:
    """Return the magnitude (B, h, w) of the output of each head of MHMC, in `stage`'s last SAM.

    Raises:
        UserError: that stage has no SAM.
    """
    mhmc = require_stage(network, stage).mhmc
    with recorded({stage: mhmc}) as outputs:
        network(images)
    return [magnitude(head) for head in outputs[stage].split(mhmc.head_channels, dim=-1)]


def magnitude(features: Tensor) -> Tensor:
    """Return the mean absolute value over the channels of (B, h, w, C)."""
    return features.abs().mean(-1)


@contextmanager
def recorded(modules: Mapping[Key, nn.Module]) -> Iterator[dict[Key, Tensor]]:
    """Yield a dictionary that has each module's last output once the network has run."""
    outputs: dict[Key, Tensor] = {}

    def record(key: Key, output: Tensor) -> None:
        outputs[key] = output

    handles = [
        module.register_forward_hook(lambda _, __, output, key=key: record(key, output))
        for key, module in modules.items()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
