"""Blocks under autocast, with fewer kernels on a GPU and fewer bytes through its memory.

Autocast keeps the sum that blocks add to in single precision, and LayerNorm computes in it: a block
reads and writes the sum several times in 4 bytes, copies it between types, and copies each weight
by a kernel of its own. Here a branch is in half precision from LayerNorm on, whose kernel has its
statistics in single precision, and the weights of a block are cast by one operation. The sum stays
in single precision, where small branches would be lost otherwise. What this rounds, autocast rounds
one operation later, before the next matrix product.

In single and double precision the operations are torch's plain ones, and so in code that
torch.compile fuses by itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

aten: Any = torch.ops.aten

_CAST = (nn.Linear, nn.Conv2d, nn.LayerNorm)
"""Layers whose parameters are in half precision within a block. BatchNorm's stay in single, as its
kernels ask for, and so does LayerScale, which float16 could hardly hold at its first value."""


def half_of(x: Tensor) -> torch.dtype | None:
    """Return the type that autocast computes matrix products of `x` in; None where it is off."""
    kind = x.device.type
    if torch.compiler.is_compiling() or not torch.amp.is_autocast_available(kind):  # on meta
        return None
    if not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


@contextmanager
def cast_parameters(module: nn.Module, x: Tensor) -> Iterator[None]:
    """Let the layers of `module` have their parameters in the type that autocast casts them to.

    Gradients reach the parameters themselves, all of the module's at once.
    """
    half = half_of(x)
    places = [] if half is None else list(_parameters(module))
    if places:
        halves = _Cast.apply(half, *(parameter for *_, parameter in places))
        for (layer, name, _), value in zip(places, halves, strict=True):
            layer._parameters[name] = value
    try:
        yield
    finally:
        for layer, name, parameter in places:
            layer._parameters[name] = parameter


def _parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for layer in module.modules():
        if isinstance(layer, _CAST):
            for name, parameter in layer._parameters.items():
                if parameter is not None:
                    yield layer, name, parameter


def pre_norm(norm: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x, for the sum with a branch, and `norm` of x, for the branch.

    Whoever uses both lets their gradients meet in one operation.
    """
    half = half_of(x)
    if half is None or x.dtype is not torch.float32:
        return x, norm(x)
    both: tuple[Tensor, Tensor] = _PreNorm.apply(
        x, norm.weight.to(half), norm.bias.to(half), norm.eps
    )
    return both


def scaled_sum(x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
    """Return x + branch * scale, of x's type: one pass over the memory."""
    if branch.dtype is x.dtype or half_of(x) is None:
        return torch.addcmul(x, branch, scale)
    total: Tensor = _ScaledSum.apply(x, branch, scale)
    return total


class _Cast(torch.autograd.Function):
    """Tensors in another type, and their gradients back, by one operation each."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = tensors[0].dtype
        return _cast(tensors, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_cast(gradients, ctx.dtype)


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(each, dtype=dtype) for each in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)


class _PreNorm(torch.autograd.Function):
    """x (..., C) float32 as it is, and its LayerNorm in the type of the weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        rounded = x.to(weight.dtype)
        with torch.autocast(x.device.type, enabled=False):  # it would compute in single precision
            output, mean, inverse = torch.native_layer_norm(
                rounded, weight.shape, weight, bias, epsilon
            )
        ctx.save_for_backward(rounded, mean, inverse, weight, bias)
        ctx.set_materialize_grads(False)
        return x, output

    @staticmethod
    def backward(ctx: Any, of_sum: Tensor | None, of_output: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, weight, bias = ctx.saved_tensors
        of_x, of_weight, of_bias = aten.native_layer_norm_backward(
            of_output, x, weight.shape, mean, inverse, weight, bias, [True] * 3
        )
        # An addition takes both types, without a copy of one in the other.
        return of_x.float() if of_sum is None else of_sum + of_x, of_weight, of_bias, None


class _ScaledSum(torch.autograd.Function):
    """x (..., C) float32 + branch (..., C) in half precision * scale that broadcasts to them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(branch if scale.requires_grad else None, scale)
        ctx.half = branch.dtype
        with torch.autocast(x.device.type, enabled=False):  # it would copy the branch first
            return torch.addcmul(x, branch, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        branch, scale = ctx.saved_tensors
        of_branch = torch.empty_like(gradient, dtype=ctx.half)
        torch.mul(gradient, scale, out=of_branch)
        of_scale = None if branch is None else (gradient * branch).sum_to_size(scale.shape)
        return gradient, of_branch, of_scale
