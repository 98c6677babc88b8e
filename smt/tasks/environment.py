"""The part of the environment that decides the order of sums, and so the last bits of a result."""

from typing import Any

import torch

from smt.config.recipes import Recipe
from smt.engine import device
from smt.engine.distributed import Ranks
from smt.runs import provenance
from smt.runs.record import Environment


def of(ranks: Ranks, recipe: Recipe | None = None) -> Environment:
    """Return the environment of this process and of those that it trains `recipe` with."""
    gpu = ranks.device.type == "cuda"
    return Environment(
        **(_of_gpu() if gpu else {}),
        world_size=ranks.world_size,
        threads=torch.get_num_threads(),
        device=ranks.device.type,
        compiled=recipe is not None and recipe.compiles,
        deterministic_algorithms=torch.are_deterministic_algorithms_enabled(),
        processor=torch.cuda.get_device_name() if gpu else provenance.processor(),
    )


def _of_gpu() -> dict[str, Any]:
    return {
        "driver": device.driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "tf32": torch.backends.cudnn.allow_tf32,
    }
