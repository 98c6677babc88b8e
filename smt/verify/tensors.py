"""Safetensors files read without torch: header, shapes, and the bytes of each tensor.

The format: eight bytes with the length of the header (little-endian), a JSON header, then the
tensors' bytes, at offsets that the header gives.
"""

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_LENGTH = 8
_LONGEST_HEADER = 100_000_000
"""Bytes that the format allows a header."""


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies."""

    dtype: str
    """As the format names it: F32, I64."""
    shape: tuple[int, ...]
    start: int
    """Of its bytes, from the beginning of the file."""
    end: int

    @property
    def values(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    @property
    def smt(self) -> dict[str, Any]:
        """What `smt.models.weights.save` was given as metadata."""
        return dict(json.loads(self.metadata.get("smt", "{}")))

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds besides its tensors."""
        return dict(json.loads(self.metadata.get("facts", "{}")))


def read(path: Path) -> Header:
    """Return the header of a safetensors file.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, path.stat().st_size - _LENGTH):
            raise ValueError("not a whole safetensors file")
        content = json.loads(file.read(length))
    if not isinstance(content, dict):
        raise ValueError("not a whole safetensors file")
    metadata = content.pop("__metadata__", {})
    start = _LENGTH + length
    try:
        tensors = {
            name: Tensor(
                entry["dtype"],
                tuple(entry["shape"]),
                start + entry["data_offsets"][0],
                start + entry["data_offsets"][1],
            )
            for name, entry in content.items()
        }
    except (KeyError, TypeError, IndexError):
        raise ValueError("not a whole safetensors file") from None
    if max((entry.end for entry in tensors.values()), default=start) > path.stat().st_size:
        raise ValueError("not a whole safetensors file: it is cut off")
    return Header(metadata, tensors)


def parameters(header: Header) -> int:
    """Return the trained values of a file of weights: without BatchNorm's statistics."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(
        tensor.values for name, tensor in header.tensors.items() if not name.endswith(buffers)
    )


def copy(source: Path, metadata: Mapping[str, str], target: BinaryIO) -> None:
    """Write to `target` the tensors of `source`, byte for byte, under this metadata alone.

    The same input gives the same bytes: keys are sorted, where the library's own writer puts them
    in an order that differs from one process to another.
    """
    content: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    with mapped(source) as tensor_bytes:
        tensors = sorted(read(source).tensors.items(), key=lambda item: item[1].start)
        position = 0
        for name, tensor in tensors:
            size = tensor.end - tensor.start
            offsets = [position, position + size]
            content[name] = {
                "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets
            }  # fmt: skip
            position += size
        header = json.dumps(content, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)  # the tensors begin at a multiple of 8
        target.write(len(header).to_bytes(_LENGTH, "little") + header)
        for _, tensor in tensors:
            target.write(tensor_bytes[tensor.start : tensor.end])


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Give the bytes of a file, mapped into memory."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        yield content


def differing(one: Path, other: Path, prefix: str) -> list[str]:
    """Return the tensors of `one` that `other` has otherwise, or not, under `prefix` + name."""
    tensors, other_tensors = read(one).tensors, read(other).tensors
    names = []
    with mapped(one) as left, mapped(other) as right:
        for name, tensor in tensors.items():
            counterpart = other_tensors.get(prefix + name)
            if (
                counterpart is None
                or (counterpart.dtype, counterpart.shape) != (tensor.dtype, tensor.shape)
                or left[tensor.start : tensor.end] != right[counterpart.start : counterpart.end]
            ):
                names.append(name)
    return names
