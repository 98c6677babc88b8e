"""Optimizer, learning rate and precision of a recipe."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from smt.config.recipes import (
    DownstreamOptimizer,
    Optimizer,
    PolySchedule,
    Recipe,
    Schedule,
    StepSchedule,
)

BACKBONE = "backbone."
"""What the names of a downstream model's trunk begin with."""


def adamw(model: nn.Module, optimizer: Optimizer) -> torch.optim.AdamW:
    """Return AdamW with the weight decay and the learning rates of the optimizer's groups.

    A group with a rate of its own holds it under `lr_scale`, over that of the others.
    """
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    groups = (
        _downstream_groups(model, named, optimizer)
        if isinstance(optimizer, DownstreamOptimizer)
        else _matrices_decay(model, named, optimizer.weight_decay)
    )
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optimizer.lr,
        betas=optimizer.betas,
        eps=optimizer.eps,
        fused=True,
    )


Named = list[tuple[str, nn.Parameter]]


def _matrices_decay(model: nn.Module, named: Named, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: parameters of two or more dimensions decay, biases and norms do not.

    Nor do those that a network of timm names, such as embedded positions.
    """
    fixed = _no_weight_decay(model)
    decaying = [value for name, value in named if value.ndim > 1 and name not in fixed]
    others = [value for name, value in named if value.ndim <= 1 or name in fixed]
    return [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _no_weight_decay(network: nn.Module) -> set[str]:
    """Return the parameters that a network or trunk names as never decaying."""
    names: set[str] = getattr(network, "no_weight_decay", set)()
    return names


def _downstream_groups(
    model: nn.Module, named: Named, optimizer: DownstreamOptimizer
) -> list[dict[str, Any]]:
    """Return four groups: those that decay and those that do not, of the head and the backbone."""
    fixed_ids = set()
    if optimizer.decay == "all_but_layer_norm":
        norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
        fixed_ids = {id(value) for norm in norms for value in norm.parameters()}
    trunk_names = _no_weight_decay(model.get_submodule(BACKBONE.rstrip(".")))
    fixed_ids |= {id(value) for name, value in named if name.removeprefix(BACKBONE) in trunk_names}
    return [
        {
            "params": [
                value
                for name, value in named
                if name.startswith(BACKBONE) == backbone and (id(value) in fixed_ids) == fixed
            ],
            "weight_decay": 0.0 if fixed else optimizer.weight_decay,
            "lr_scale": optimizer.backbone_rate if backbone else 1.0,
        }
        for backbone in (False, True)
        for fixed in (False, True)
    ]


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of global step `step`, counted from 0.

    All rates of the recipe are scaled by global batch / lr_batch.
    """
    factor = recipe.global_batch / recipe.optimizer.lr_batch
    peak = recipe.optimizer.lr * factor
    match recipe.schedule:
        case Schedule() as cosine:
            return _cosine(cosine, peak, factor, step, steps_per_epoch)
        case StepSchedule() as steps:
            drops = sum(step >= epoch * steps_per_epoch for epoch in steps.milestones)
            return _warmed_up(steps, step) * peak * steps.gamma**drops
        case PolySchedule() as poly:
            low = poly.min_lr * factor
            left: float = (1 - step / poly.steps) ** poly.power
            return _warmed_up(poly, step) * (low + (peak - low) * left)


def _cosine(
    schedule: Schedule, peak: float, factor: float, step: int, steps_per_epoch: int
) -> float:
    """Return a rate that is linear over the warm-up, then the cosine of the whole run.

    The warm-up is included in the cosine's argument, as the release has it.
    """
    low = schedule.min_lr * factor
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step < warmup:
        first = schedule.warmup_lr * factor
        return first + (peak - first) * step / warmup
    total = schedule.epochs * steps_per_epoch
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * step / total))


def _warmed_up(schedule: StepSchedule | PolySchedule, step: int) -> float:
    """Return the part of the rate that the warm-up leaves at a step: linear up to 1 (mmcv)."""
    if step >= schedule.warmup_steps:
        return 1.0
    return schedule.warmup_ratio + (1 - schedule.warmup_ratio) * step / schedule.warmup_steps


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the learning rate, or its own part of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def clip(parameters: Iterable[nn.Parameter], limit: float | None) -> torch.Tensor:
    """Scale the gradient down to an L2 norm of `limit`; return its norm before that."""
    return nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit, foreach=True)


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Types of the precisions that autocast is for."""


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the context in which a forward pass of the recipe runs."""
    half = HALF.get(recipe.precision)
    return torch.autocast(device.type, dtype=half, enabled=half is not None)


def loss_scaler(recipe: Recipe, device: torch.device) -> torch.amp.GradScaler:
    """Return the loss scaler: at work for fp16, which underflows without, idle otherwise."""
    return torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
