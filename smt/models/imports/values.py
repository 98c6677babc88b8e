"""Whether tensors of a file can be weights: plain, of a model's kind of number, and finite."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from smt.errors import UserError, listed

_COUNTED = 4
"""Tensors that an error names before it only counts the rest."""


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Return which tensors hold NaN or an infinite value and how many, in a phrase, or None."""
    phrases = []
    for name, tensor in state.items():
        if _form(tensor) is not None or not (tensor.is_floating_point() or tensor.is_complex()):
            continue  # no plain array of fractions
        # The 8-bit kinds have no operations of their own.
        values = tensor.float() if tensor.element_size() == 1 else tensor
        nan, finite = int(values.isnan().sum()), int(values.isfinite().sum())
        infinite = values.numel() - finite - nan
        kinds = [f"{count:,} {kind}" for count, kind in ((nan, "NaN"), (infinite, "infinite"))
                 if count]  # fmt: skip
        if kinds:
            phrases.append(f"{name} ({' and '.join(kinds)} of {values.numel():,})")
    if not phrases:
        return None
    return f"{len(phrases)} of {len(state)} tensors are not finite: {listed(phrases, _COUNTED)}"


def check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor] | None, source: Path) -> None:
    """Check that the values of `source` can be those of a model.

    Raises:
        UserError: names tensors that are sparse, quantised or without values, of whole numbers
            where `expected` has fractions or the other way round, or not finite.
    """
    unusual = [
        f"{name} ({_form(tensor)})" for name, tensor in state.items() if _form(tensor) is not None
    ]
    if unusual:
        raise UserError(
            f"weights {source} are not plain tensors: {listed(unusual)}; nothing was loaded, save "
            "them as dense float32 on the CPU"
        )
    kinds = [
        f"{name} is {_kind(state[name])}, not {_kind(tensor)}"
        for name, tensor in (expected or {}).items()
        if state[name].is_floating_point() != tensor.is_floating_point()
    ]
    if kinds:
        raise UserError(
            f"weights {source} are of another kind of number: {listed(kinds)}; nothing was loaded, "
            "save them as they were trained, not quantised"
        )
    broken = not_finite(state)
    if broken is not None:
        raise UserError(
            f"weights {source}: {broken}; nothing was loaded: the file is of a training that "
            "broke, or damaged; take an earlier checkpoint, or copy it again"
        )


def _form(tensor: Tensor) -> str | None:
    """Return in what other form than a dense array a tensor is held, or None."""
    if tensor.is_meta:
        return "without values, on the meta device"
    if tensor.layout != torch.strided:
        return "sparse"
    return "quantised" if tensor.is_quantized else None


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
