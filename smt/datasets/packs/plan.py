"""Which image will be where in which shard, before any is read."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from smt.datasets import file_lists
from smt.datasets.manifest import Manifest
from smt.datasets.packs import shards
from smt.datasets.packs.index import ROW


@dataclass(frozen=True)
class SplitPlan:
    """How the images of a split are spread over shards; follows from its list and the size."""

    split: str
    index: "np.ndarray[Any, Any]"
    """(images,) of `ROW`; the CRC-32 are not known yet."""
    starts: tuple[int, ...]
    """Position of the first image of each shard, and the number of images."""
    shard_bytes: tuple[int, ...]
    list_bytes: int

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each shard, below the folder of the pack."""
        return tuple(f"{self.split}/{number:06d}.tar" for number in range(len(self.shard_bytes)))

    @property
    def index_name(self) -> str:
        """Name of the file of the index."""
        return f"{self.split}.npy"

    @property
    def total_bytes(self) -> int:
        """Bytes of the shards, the index and the list."""
        return sum(self.shard_bytes) + self.index.nbytes + self.list_bytes


def plan(manifest: Manifest, split: str, shard_size: int) -> SplitPlan:
    """Return where each image of a split will be, in shards of `shard_size` bytes at most.

    An image that is larger has a shard of its own.

    Raises:
        DataError: the list of the split is missing or not the one of the manifest.
    """
    listed = manifest.splits[split]
    lines = file_lists.read_checked(manifest.list_file(split), listed.sha256, manifest.dataset)
    index = np.zeros(listed.images, ROW)
    index["size"] = np.fromiter((line.size for line in lines), np.int64, listed.images)
    index["label"] = np.repeat(np.arange(len(manifest.classes)), listed.per_class)
    headers = np.array([shards.header_bytes(name) for name in manifest.classes])[index["label"]]
    ends = np.cumsum(shards.entry_bytes(index["size"].astype(np.int64), headers))
    sizes: list[int] = []
    starts, before = [0], 0
    while starts[-1] < len(index):
        room = before + shard_size - len(shards.END)
        end = max(int(np.searchsorted(ends, room, side="right")), starts[-1] + 1)
        own = slice(starts[-1], end)
        index["shard"][own] = len(sizes)
        index["offset"][own] = np.concatenate([[before], ends[own][:-1]]) - before + headers[own]
        sizes.append(int(ends[end - 1]) - before + len(shards.END))
        before = int(ends[end - 1])
        starts.append(end)
    list_bytes = manifest.list_file(split).stat().st_size
    return SplitPlan(split, index, tuple(starts), tuple(sizes), list_bytes)
