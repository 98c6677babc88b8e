"""Optimizer, learning rate and precision of a recipe."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from smt.spec import Optimizer, Recipe


def adamw(model: nn.Module, optimizer: Optimizer) -> torch.optim.AdamW:
    """Return AdamW with weight decay on parameters of two or more dimensions only."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    groups = [
        {
            "params": [value for _, value in named if value.ndim > 1],
            "weight_decay": optimizer.weight_decay,
        },
        {"params": [value for _, value in named if value.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optimizer.lr,
        betas=optimizer.betas,
        eps=optimizer.eps,
        fused=True,
    )


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of global step `step`, counted from 0.

    Linear from `warmup_lr` to `lr` over the warm-up, then the cosine of the whole run (the warm-up
    included in its argument, as the release has it) down to `min_lr`; all three scaled by
    global batch / lr_batch.
    """
    schedule = recipe.schedule
    factor = recipe.global_batch / recipe.optimizer.lr_batch
    peak, low = recipe.optimizer.lr * factor, schedule.min_lr * factor
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step < warmup:
        first = schedule.warmup_lr * factor
        return first + (peak - first) * step / warmup
    total = schedule.epochs * steps_per_epoch
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * step / total))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip(parameters: Iterable[nn.Parameter], limit: float | None) -> torch.Tensor:
    """Scale the gradient down to an L2 norm of `limit`; return its norm before that."""
    return nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit, foreach=True)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the context in which a forward pass of the recipe runs."""
    return torch.autocast(
        device.type, dtype=DTYPES[recipe.precision], enabled=recipe.precision != "fp32"
    )


def loss_scaler(recipe: Recipe, device: torch.device) -> torch.amp.GradScaler:
    """Return the loss scaler: at work for fp16, which underflows without, idle otherwise."""
    return torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
