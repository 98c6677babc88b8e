"""Attention whose gradient is deterministic on GPUs, where torch is asked for that."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

_KERNELS = "ScaledDotProduct"
"""What the names of attention's fused backward nodes begin with."""

_STEPS = 8
"""From the output of a layer of attention to its kernel there are at most so many nodes."""


def repeatable(attended: Tensor) -> Tensor:
    """Return the output of attention as it is; its gradient will have the same bits every time.

    Flash and memory-efficient attention have a deterministic backward pass, and take it only where
    torch is told to fail without one (`warn_only` off). Training asks for warnings, since a few
    other operations have none, so the kernel alone is run under the stricter rule.
    """
    if _needs_care(attended):
        for node in _kernels(attended.grad_fn):
            node.register_prehook(_fail_without)
            node.register_hook(_warn_without)
    return attended


def _needs_care(attended: Tensor) -> bool:
    """Return whether there is a wish that the kernel's gradient does not fulfil by itself.

    In code that torch compiles there is no graph yet; the gradient is then named as what it is.
    """
    if torch.compiler.is_compiling():
        return False
    return attended.device.type == "cuda" and torch.are_deterministic_algorithms_enabled()


def _kernels(last: Node | None) -> Iterator[Node]:
    """Yield the attention kernels' nodes behind `last`, the nearest of each way."""
    nodes = [last]
    for _ in range(_STEPS):
        before = []
        for node in nodes:
            if node is None:
                continue
            if node.name().startswith(_KERNELS):
                yield node
            else:
                before += [function for function, _ in node.next_functions]
        nodes = before


def _fail_without(gradients: Any) -> None:
    torch.use_deterministic_algorithms(True)


def _warn_without(inputs: Any, outputs: Any) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
