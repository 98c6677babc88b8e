"""A GPU that is not there: fake tensors on "cuda" go forward, under autocast, and backward.

Fake tensors have a shape, a type and a device, and no data, so a machine without a GPU can compute
with them what a GPU would, but for the numbers. Forward that works as it is. Backward, a CUDA build
of torch asks the driver for a context first and fails; the one function that asks is replaced while
a rehearsal runs. That depends on how one version of torch is built, hence `TORCH`.
"""

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from smt.engine.device import use_deterministic_algorithms
from smt.errors import UserError

TORCH = "2.14"
"""The version whose table of functions is known."""

GPU = torch.device("cuda", 0)

_HAS_PRIMARY_CONTEXT = 4
"""Place of CUDAHooks::hasPrimaryContext in its virtual table: after two destructors, isBuilt and
isAvailable."""
_BEFORE, _ENTRIES = 2, 96
"""Words of the table before its first function, and functions to copy: more than there are."""


def require() -> None:
    """Raise a UserError where there is no fake GPU to be had."""
    if torch.cuda.is_available():
        raise UserError(
            "this machine has a GPU, and a rehearsal is for one without; see benchmarks/gpu.py, or "
            "hide the GPU: CUDA_VISIBLE_DEVICES= smt rehearse"
        )
    if torch.__version__.split(".")[:2] != TORCH.split("."):
        raise UserError(
            f"torch {torch.__version__}: a rehearsal needs torch {TORCH}, whose inner workings it "
            "replaces; requirements.lock pins it (make env)"
        )


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Let fake tensors on `GPU` compute within the body, as a training would have them.

    Raises:
        UserError: there is a real GPU, or torch is of another version.
    """
    require()
    with ExitStack() as stack:
        if torch.version.cuda is not None:
            stack.enter_context(_no_context_needed())
        # Backward passes run in this thread, where the modes that watch them are in force.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        for target, name, value in (
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
            (F, "scaled_dot_product_attention", _attention),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(_deterministic())
        yield


def move_to_gpu(network: nn.Module) -> None:
    """Put a fake tensor on the GPU in place of each parameter and buffer of a real network.

    Other attributes of modules stay where they are, as `Module.to` would leave them, so that a
    constant which was forgotten there is met by a tensor of another device.
    """
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                on_gpu = nn.Parameter(fake_on_gpu(parameter), parameter.requires_grad)
                module._parameters[name] = on_gpu
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else fake_on_gpu(buffer)


def fake_on_gpu(tensor: Tensor) -> Tensor:
    """Return a fake tensor on the GPU of a tensor's shape, strides and type."""
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=GPU)


@contextmanager
def _no_context_needed() -> Iterator[None]:
    """Have CUDAHooks::hasPrimaryContext answer no, where it would look for a driver."""
    library = Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"
    hooks_of_cuda = ctypes.CDLL(str(library))._ZN2at6detail12getCUDAHooksEv
    hooks_of_cuda.restype = ctypes.c_void_p
    hooks = ctypes.cast(hooks_of_cuda(), ctypes.POINTER(ctypes.c_void_p))
    original, word = hooks[0], ctypes.sizeof(ctypes.c_void_p)
    assert original is not None
    table = (ctypes.c_void_p * (_BEFORE + _ENTRIES))()
    ctypes.memmove(table, original - _BEFORE * word, ctypes.sizeof(table))
    no = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda hooks, index: False)
    table[_BEFORE + _HAS_PRIMARY_CONTEXT] = ctypes.cast(no, ctypes.c_void_p).value
    hooks[0] = ctypes.addressof(table) + _BEFORE * word
    try:
        yield
    finally:
        hooks[0] = original


@contextmanager
def _deterministic() -> Iterator[None]:
    """Ask for deterministic algorithms, as a training does: some take other kernels then."""
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    use_deterministic_algorithms()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


_attention_of_torch = F.scaled_dot_product_attention


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """Take the kernel that torch would take on a GPU, which it asks the card for.

    Without a mask that is flash attention in half precision; else the memory-efficient one.
    """
    if not isinstance(query, FakeTensor) or query.device.type != "cuda":
        return _attention_of_torch(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(half), key.to(half), value.to(half)
    kernels: Any = torch.ops.aten
    if attn_mask is None and query.dtype is not torch.float32:
        flash = kernels._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask is not None:
        attn_mask = _additive(attn_mask, query).expand(*query.shape[:3], key.shape[2])
    efficient = kernels._scaled_dot_product_efficient_attention
    return efficient(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]


def _additive(mask: Tensor, query: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
