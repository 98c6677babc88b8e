"""Random access to the images of a pack, by the position of each in its split's list."""

import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from smt.datasets.packs.record import Pack, remedy
from smt.errors import DataError
from smt.runs import atomic

ROW = np.dtype(
    [("shard", "<u4"), ("label", "<u4"), ("offset", "<u8"), ("size", "<u8"), ("crc32", "<u4")]
)
"""An image of the index: where its bytes are, and its class. 28 bytes."""

OPEN_SHARDS = 256
"""Shards that a process holds open at a time: a quarter of the files that most systems allow it."""


class PackedImages(Sequence[tuple["PackedImage", int]]):
    """The images of a split, each with the number of its class, in the order of the list.

    The index stays in a memory map that all processes of a node share. Each process opens shards
    for itself, when it reads from them.

    Raises:
        DataError: the index is missing, or not the one that `pack.json` names.
    """

    def __init__(self, pack: Pack, split: str) -> None:
        self._pack, self._split = pack, split
        self._index = _map_index(pack, split)
        names = [shard.name for shard in pack.splits[split].shards]
        self._shards = _OpenShards([pack.folder / name for name in names])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> tuple["PackedImage", int]:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return PackedImage(self, index), int(self._index[index]["label"])

    def read(self, index: int) -> bytes:
        """Return the file of an image.

        Raises:
            DataError: with a phrase: its shard cannot be read, is cut off, or has other bytes.
        """
        shard, _, offset, size, crc32 = self._index[index].item()
        try:
            # By offset, for processes share the position of a file that was open at a fork.
            content = os.pread(self._shards.descriptor(shard), size, offset)
        except OSError as error:
            raise DataError(f"the shard cannot be read: {error.strerror}") from None
        if len(content) < size:
            raise DataError("the shard is cut off in or before it")
        if zlib.crc32(content) != crc32:
            raise DataError("its bytes are not those that were packed")
        return content

    def place(self, index: int) -> tuple[int, int]:
        """Return offset and size of an image in its shard, in bytes."""
        row = self._index[index]
        return int(row["offset"]), int(row["size"])

    def path(self, index: int) -> str:
        """Return the path of an image in the folders that were packed; it is looked for."""
        with self._pack.manifest.list_file(self._split).open("rb") as lines:
            return next(islice(lines, index, None)).split(b"\t")[0].decode()

    def describe(self, index: int) -> str:
        """Return the shard of an image, and its path in the folders that were packed."""
        return f"{self._shards.paths[self._index[index]['shard']]}, entry {self.path(index)}"

    def __getstate__(self) -> dict[str, Any]:
        # For a worker that is not forked: a map would be sent as all its bytes.
        return {"pack": self._pack, "split": self._split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


@dataclass(frozen=True)
class PackedImage:
    """An image file in a shard."""

    images: PackedImages
    index: int

    def read(self) -> bytes:
        """Return its bytes; see `PackedImages.read`."""
        return self.images.read(self.index)

    def __str__(self) -> str:
        return self.images.describe(self.index)


class _OpenShards:
    """Descriptors of shards, opened when they are read from; the one not read for longest goes."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._open: OrderedDict[int, int] = OrderedDict()

    def descriptor(self, shard: int) -> int:
        """Return the descriptor of a shard, by its number; it is valid until the next call."""
        if shard not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(shard)
        return self._open[shard]

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def _map_index(pack: Pack, split: str) -> "np.ndarray[Any, Any]":
    packed = pack.splits[split]
    path = pack.folder / packed.index
    try:
        if atomic.sha256(path) == packed.index_sha256:
            index: np.ndarray[Any, Any] = np.load(path, mmap_mode="r")
            return index
    except OSError as error:
        raise DataError(f"index {path} cannot be read ({error.strerror}); {remedy(pack)}") from None
    raise DataError(f"index {path} is not the one that its pack names; {remedy(pack)}")
