"""The bytes of a shard: uncompressed tar, `CLASS/POSITION.jpg` and `.cls` for each image.

They follow from the list of images and the images alone: times, owners and modes are constants. So
a shard is the same whenever and wherever it is written, and can be held to its list.
"""

import hashlib
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from smt.datasets import file_lists
from smt.datasets.file_lists import Line
from smt.datasets.packs.record import Pack, Shard

N = TypeVar("N", int, "np.ndarray[Any, np.dtype[np.int64]]")

END = bytes(2 * tarfile.BLOCKSIZE)
"""What a tar file ends with."""


class Entry(NamedTuple):
    """An image in a shard."""

    position: int
    """Of its line in the list of the split, from 0."""
    line: Line
    label: int
    """Number of its class."""

    def pack(self, image: bytes) -> bytes:
        """Return the two members that hold the image and its class."""
        key, label = _key(_class_of(self.line.path), self.position), str(self.label).encode()
        suffix = "png" if self.line.path.lower().endswith(".png") else "jpg"
        return b"".join(
            (
                _header(f"{key}.{suffix}", len(image)), image, _padding(len(image)),
                _header(f"{key}.cls", len(label)), label, _padding(len(label)),
            )
        )  # fmt: skip


class DamagedShard(Exception):
    """A shard that is not what its list says; the message is a phrase that names the entry."""


def entries(lines: Iterable[Line], labels: Mapping[str, int], first: int) -> Iterator[Entry]:
    """Yield the entry of each line, the first at position `first`; `labels` is by class name."""
    for position, line in enumerate(lines, first):
        yield Entry(position, line, labels[_class_of(line.path)])


def entries_of(pack: Pack, split: str, shard: Shard) -> Iterator[Entry]:
    """Yield the entries of a shard as the list in its pack has them."""
    packed, labels = pack.splits[split].shards, {c: i for i, c in enumerate(pack.manifest.classes)}
    first = sum(each.images for each in packed[: packed.index(shard)])
    lines = file_lists.read(pack.manifest.list_file(split))
    return entries(islice(lines, first, first + shard.images), labels, first)


def read(path: Path, expected: Iterable[Entry]) -> Iterator[tuple[Entry, bytes, bytes]]:
    """Yield each entry of a shard, its image and all its bytes, each checked.

    Raises:
        DamagedShard: an entry, or the end of the shard, is not as it was packed.
        OSError: the shard cannot be read.
    """
    with path.open("rb") as file:
        for entry in expected:
            size, start = entry.line.size, header_bytes(_class_of(entry.line.path))
            content = file.read(entry_bytes(size, start))
            image = content[start : start + size]
            if len(image) < size:
                raise DamagedShard(f"cut off in or before {entry.line.path}")
            if hashlib.sha256(image).hexdigest() != entry.line.sha256:
                raise DamagedShard(f"other bytes in {entry.line.path}")
            if content != entry.pack(image):
                raise DamagedShard(f"other bytes in the tar header or class of {entry.line.path}")
            yield entry, image, content
        if file.read(len(END) + 1) != END:
            raise DamagedShard("another end than a tar file has")


def header_bytes(class_name: str) -> int:
    """Return the length of the tar header of each member of a class."""
    return len(_header(f"{_key(class_name, 0)}.cls", 0))


def entry_bytes(size: N, header: N) -> N:
    """Return the length of an entry, or of many: images of `size` bytes, classes, two headers."""
    length: N = 2 * header + size + -size % tarfile.BLOCKSIZE + tarfile.BLOCKSIZE
    return length


def _key(class_name: str, position: int) -> str:
    # The name of the file would not do: WebDataset ends a key at its first dot, and takes a.jpg and
    # a.png for one sample.
    return f"{class_name}/{position:09d}"


def _class_of(path: str) -> str:
    return path.split("/")[1]


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
