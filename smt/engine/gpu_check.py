"""`python -m smt.engine.gpu_check`: what a training would find of GPUs on this node, as JSON.

It takes a step of a small model in every precision, since a card can be seen and still be of no
use: for its architecture, for its driver, or because another process has its memory. Two processes
add up a tensor, with a GPU each where there are two.
"""

import json
import shutil
from typing import Any

import torch
import torch.nn.functional as F

from smt.config.load import load_project
from smt.engine import device as device_module
from smt.engine import exchange_check, optim
from smt.errors import UserError, first_line
from smt.models.smt import SMT
from smt.runs.paths import bundled_params

SHARED_MEMORY = "/dev/shm"
"""Through which data workers hand over batches."""

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


def check() -> dict[str, Any]:
    """Return what is there, and what keeps a training from it.

    `problem` is why one GPU is of no use, `exchange_problem` why two processes cannot exchange
    gradients; each is None where all is well.
    """
    result: dict[str, Any] = {
        "count": torch.cuda.device_count(),
        "problem": None,
        "exchange_problem": None,
        "shared_memory_bytes": shutil.disk_usage(SHARED_MEMORY).free,
    }
    try:
        device = device_module.choose(0, half_precision=True)
    except UserError as error:
        return {**result, "problem": str(error).removesuffix(f"; {device_module.REMEDY}")}
    if device.type == "cuda":
        result |= {
            "name": torch.cuda.get_device_name(device),
            "memory_bytes": torch.cuda.get_device_properties(device).total_memory,
            "driver": device_module.driver(),
        }
        result["problem"] = failing_step(device)
    return {**result, "exchange_problem": exchange_check.problem()}


def failing_step(device: torch.device) -> str | None:
    """Return why a training step fails on `device`, with its precision, or None."""
    project = load_project(bundled_params(), "smoke")
    model, recipe = project.smt_models["smt_tiny"], project.recipes["imagenet1k"]
    for precision in PRECISIONS:
        device_module.allow_tf32(precision == "tf32")
        variant = recipe.model_copy(update={"precision": precision})
        try:
            network = SMT(model, num_classes=10).to(device)
            images = torch.randn(4, 3, 64, 64, device=device)
            with optim.autocast(variant, device):
                loss = F.cross_entropy(network(images).float(), torch.arange(4, device=device))
            loss.backward()
            if not bool(loss.isfinite()):
                return f"a step in {precision} gives a loss of {float(loss)}"
        except RuntimeError as error:
            return f"a step in {precision} fails: {first_line(error)}"
    return None


if __name__ == "__main__":
    print(json.dumps(check()))
