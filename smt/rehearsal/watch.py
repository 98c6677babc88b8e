"""What a step does on the fake GPU: memory by place, waits, kernels, bytes that they move."""

import math
import sys
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakTensorKeyDictionary

from smt.detection import hungarian, pooling, transfer
from smt.runs.paths import PACKAGE

aten: Any = torch.ops.aten

_BLOCK = 512
"""Bytes that torch's allocator rounds to."""

_POSITIVES = 300
"""What a search for elements that are true comes to, where its result depends on data."""

_SAMPLES = 8
"""Most samples that a bin of a pooled box has along an axis: of a box of 56 cells."""

_KEPT_BOXES = 2_000
"""What is left of boxes by non-maximum suppression, at most."""


class Watch(TorchDispatchMode):
    """Counts what operations on the fake GPU do, and answers those whose result depends on data.

    Their answers are plausible: losses are 1, masks are true everywhere, searches find some
    hundreds of elements.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        """Bytes of the tensors that exist."""
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._pinned = WeakTensorKeyDictionary()
        """Tensors of the host in memory that a GPU reads by itself."""
        self.reset()

    def reset(self) -> None:
        """Begin to count anew; tensors that exist stay counted."""
        self.peak, self.peak_at = self.live, ""
        self.waits: Counter[tuple[str, str]] = Counter()
        """Times that the host waits for the GPU, by what for and where."""
        self.kernels: Counter[str] = Counter()
        """Operations that compute, by name."""
        self.casts = 0
        """Those of them that copy tensors to another type."""
        self.traffic = 0
        """Bytes that these read and write: see `bytes_moved`."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # most calls: each look at a tensor's device
            return func(*args)
        if torch.is_inference_mode_enabled() and _is_composite(func):
            # Without autograd nobody has taken composite operations apart before they come here.
            with self:
                return func.decompose(*args, **kwargs)
        _require_one_type(func, args)
        result = self._answer(func, args, kwargs)
        self._count(func, args, kwargs, result)
        return result

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        outputs = _on_gpu(result)
        for output in outputs:
            self._hold(output)
        if (outputs or _on_gpu((args, kwargs))) and _computes(func):
            self.kernels[str(func)] += 1
            self.casts += is_cast(func, args, result)
            self.traffic += bytes_moved(func, args, kwargs, result)

    def _hold(self, tensor: Tensor) -> None:
        """Count a tensor's memory for as long as something refers to it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK

        def release(_: Any) -> None:
            if self._storages.pop(key, None) is not None:
                self.live -= size

        self._storages[key] = weakref.ref(storage, release)
        self.live += size
        if self.live > self.peak:
            self.peak, self.peak_at = self.live, place()

    def wait(self, kind: str) -> None:
        """Count a wait of the host for the GPU, where the code is now."""
        self.waits[kind, place()] += 1

    def _answer(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        match func:
            case aten._local_scalar_dense.default:
                self._wait_for("a number", args[0])
                kind = args[0].dtype
                return True if kind is torch.bool else 1.0 if kind.is_floating_point else 1
            case aten.nonzero.default:
                self._wait_for("nonzero", args[0])
                count = min(_POSITIVES, args[0].numel())
                return args[0].new_empty((count, args[0].dim()), dtype=torch.int64)
            case aten._pin_memory.default:
                pinned = torch.empty_like(args[0])
                self._pinned[pinned] = True
                return pinned
            case torch.ops.torchvision.nms.default:
                self._wait_for("nms", args[0])
                count = min(len(args[0]), _KEPT_BOXES)
                return args[0].new_empty((count,), dtype=torch.int64)
            case aten.index.Tensor:
                return func(args[0], [self._plain_index(each) for each in args[1]])
            case aten.index_put.default | aten.index_put_.default:
                for index in args[1]:
                    if index is not None and index.dtype is torch.bool:
                        self._wait_for("boolean index", index)
            case aten._to_copy.default | aten.copy_.default:
                self._copy(func, args, kwargs)
        return func(*args, **kwargs)

    def _plain_index(self, index: Tensor | None) -> Tensor | None:
        """Return the index that a mask stands for, where it is true everywhere."""
        if index is None or index.dtype is not torch.bool:
            return index
        self._wait_for("boolean index", index)
        assert index.dim() == 1, "a mask of several dimensions has no plain index"
        return torch.arange(len(index), device=index.device)

    def _copy(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Count a copy between host and GPU that is waited for: of memory that is not pinned."""
        if func is aten.copy_.default:
            target, source = args[0].device.type, args[1]
            blocks = not (len(args) > 2 and args[2])
        else:
            device, source = kwargs.get("device"), args[0]
            target = torch.device(device).type if device is not None else source.device.type
            blocks = not kwargs.get("non_blocking") or (
                source.device.type == "cpu" and source not in self._pinned
            )
        if {target, source.device.type} == {"cpu", "cuda"} and source.numel() and blocks:
            self.wait("copy to the GPU" if target == "cuda" else "copy to the host")

    def _wait_for(self, kind: str, tensor: Tensor) -> None:
        if tensor.device.type == "cuda":
            self.wait(kind)

    @contextmanager
    def host_side(self) -> Iterator[None]:
        """Answer what no dispatcher sees of fake tensors: lists of numbers, the matcher.

        Lists are of ones, but where sizes of tensors follow from them.
        """
        original = Tensor.tolist

        def tolist(tensor: Tensor) -> Any:
            if not isinstance(tensor, FakeTensor):
                return original(tensor)
            self._wait_for("a list", tensor)
            return _ones(tensor.shape, tensor.dtype)

        with (
            mock.patch.object(Tensor, "tolist", tolist),
            mock.patch.object(FakeTensor, "tolist", tolist),
            mock.patch.object(hungarian, "assign", _first_pairs),
            mock.patch.object(transfer, "true_counts", _all_true),
            mock.patch.object(pooling, "counts_and_most", _equally_many),
        ):
            yield


def _ones(shape: Sequence[int], kind: torch.dtype) -> Any:
    """Return lists of `shape`, or a number if it is empty."""
    if len(shape) == 0:
        return 1.0 if kind.is_floating_point else 1
    return [_ones(shape[1:], kind) for _ in range(shape[0])]


_true_counts = transfer.true_counts


def _all_true(masks: Sequence[Tensor]) -> list[int]:
    """Take every element for true."""
    _true_counts(masks)
    return [mask.numel() for mask in masks]


_counts_and_most = pooling.counts_and_most


def _equally_many(
    group: Tensor, groups: int, samples: Tensor | None
) -> tuple[list[int], int | None]:
    """Take boxes for spread evenly over levels and images."""
    _, most = _counts_and_most(group, groups, samples)
    each, rest = divmod(len(group), groups)
    return [each] * (groups - 1) + [each + rest], None if most is None else _SAMPLES


def _first_pairs(costs: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Match the first query with the first object, and so on."""
    pairs = torch.cat([torch.arange(min(shape)) for shape in shapes])
    return torch.stack([pairs, pairs])


_ONE_TYPE = {"mm", "addmm", "bmm", "baddbmm", "convolution"}
"""Operations whose kernels take tensors of one type alone; fake tensors let all of them pass."""


def _require_one_type(func: Any, args: tuple[Any, ...]) -> None:
    """Fail as a GPU's kernel would."""
    if func.overloadpacket.__name__ not in _ONE_TYPE:
        return
    types = {each.dtype for each in args if isinstance(each, Tensor)}
    if len(types) > 1:
        names = " and ".join(sorted(str(each).removeprefix("torch.") for each in types))
        raise RuntimeError(f"{func.overloadpacket.__name__} of tensors of {names}")


def _is_on_gpu(value: Any) -> bool:
    # Not its `device`, which is an operation of its own.
    return isinstance(value, FakeTensor) and value.fake_device.type == "cuda"


def _on_gpu(values: Any) -> list[Tensor]:
    return [each for each in tree_iter(values) if _is_on_gpu(each)]


_NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach",
    "_local_scalar_dense", "_unsafe_view", "lift_fresh", "alias", "set_",
}  # fmt: skip


def _computes(func: Any) -> bool:
    return (
        func.namespace != "prim"
        and not func.is_view
        and func.overloadpacket.__name__ not in _NO_KERNEL
    )


_OVERWRITE = {
    "copy_", "fill_", "zero_", "bernoulli_", "normal_", "uniform_", "random_", "_foreach_copy_",
    "_foreach_zero_",
}  # fmt: skip
"""Operations that write a tensor of theirs and do not read what it was."""


def bytes_moved(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """Return the bytes that an operation on the GPU reads and writes.

    A tensor that it changes in place is read and written; one of which an element stands for many,
    as an expanded one, is read once. Not seen: what a kernel reads again, and copies that it makes
    inside, such as a convolution's of another memory layout.
    """
    schema, total = func._schema, 0
    for number, argument in enumerate(schema.arguments):
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        written = argument.alias_info is not None and argument.alias_info.is_write
        overwritten = argument.is_out or func.overloadpacket.__name__ in _OVERWRITE
        times = (not (written and overwritten)) + written
        total += times * _size(value)
    results = result if len(schema.returns) > 1 else (result,)
    for returned, value in zip(schema.returns, results, strict=False):  # of none, None
        if returned.alias_info is None:
            total += _size(value)
    return total


def _size(value: Any) -> int:
    """Return the bytes of the tensors on the GPU that a value is or holds."""
    return sum(_elements(each) * each.element_size() for each in _on_gpu(value))


def _elements(tensor: Tensor) -> int:
    """Return how many elements there are in memory."""
    shape = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size if stride else min(size, 1) for size, stride in shape)


def is_cast(func: Any, args: tuple[Any, ...], result: Any) -> bool:
    """Return whether an operation does no more than copy GPU tensors to another type."""
    match func:
        case aten._to_copy.default:
            source, target = args[0], result
        case aten.copy_.default:
            target, source = args[:2]
        case aten._foreach_copy_.default:
            target, source = args[0][0], args[1][0]
        case _:
            return False
    return _is_on_gpu(source) and _is_on_gpu(target) and bool(source.dtype is not target.dtype)


def place() -> str:
    """Return the line of this package, or else of torch, that runs now: what it is all about."""
    frame = sys._getframe(1)
    of_torch = ""
    while frame is not None:
        name = frame.f_code.co_filename
        line = package_line(name, frame.f_lineno)
        if line is not None:
            return line
        if not of_torch and any(f"torch/{each}" in name for each in ("nn/utils", "amp", "optim")):
            of_torch = f"{name.rpartition('site-packages/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return of_torch or "backward"


def package_line(file: str, number: int) -> str | None:
    """Return a line of this package by its path from the checkout; None of all other code.

    The rehearsal's own lines, which are behind every operation, are other code.
    """
    module = _module(file)
    return None if module is None else f"{module}:{number}"


@cache
def _module(file: str) -> str | None:
    path = Path(file)
    if not path.is_relative_to(PACKAGE) or path.is_relative_to(PACKAGE / "rehearsal"):
        return None
    return f"smt/{path.relative_to(PACKAGE)}"


def _is_composite(func: Any) -> bool:
    return bool(func.namespace == "aten" and func._can_decompose())
