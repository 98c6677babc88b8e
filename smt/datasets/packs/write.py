"""Packing a data set: shard by shard, side by side; what was packed before a kill is kept.

A shard follows from the list of images, so nothing else is remembered: a shard that is there is
held to the list, every byte of it, and written anew where it differs. Originals are only read.
"""

import fcntl
import hashlib
import json
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smt.datasets import file_lists
from smt.datasets.hashing import ProgressCallback, default_jobs
from smt.datasets.manifest import Manifest
from smt.datasets.packs import shards
from smt.datasets.packs.plan import SplitPlan
from smt.datasets.packs.record import VERSION, Pack, PackedSplit, Shard
from smt.datasets.packs.shards import Entry
from smt.datasets.scan import PACK_RECORD, UNFINISHED_PACK
from smt.errors import DataError, UserError
from smt.runs import atomic
from smt.runs.atomic import copy_file, replacing, write_json


@dataclass
class PackStats:
    """How many shards a packing has written."""

    written: int = 0
    kept: int = 0
    """Shards that were there already, every byte as it should be."""


class Packer:
    """Packs a data set from its folder `root` into `folder`, `jobs` shards at a time.

    Raises:
        DataError: an image is not as the manifest says, or cannot be read.
        UserError: another process packs into the folder.
        OSError: the folder cannot be written.
    """

    def __init__(
        self, root: Path, folder: Path, manifest: Manifest, shard_size: int, *,
        jobs: int | None = None, progress: ProgressCallback | None = None,
    ) -> None:  # fmt: skip
        self._root, self._folder, self._manifest = root, folder, manifest
        self._shard_size = shard_size
        self._labels = {name: number for number, name in enumerate(manifest.classes)}
        self._jobs = jobs or default_jobs()
        self._progress = progress or ProgressCallback()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self.stats = PackStats()

    def run(self, plans: list[SplitPlan]) -> Pack:
        """Write every shard that is not there, and then the index, the lists and the record."""
        self._progress.expect(sum(len(each.index) for each in plans))
        with _claimed(self._folder, self._manifest.dataset, self._shard_size):
            splits = {each.split: self._split(each) for each in plans}
            pack = self._record(splits)
            content = pack.model_dump(mode="json", exclude_defaults=True)
            write_json(self._folder / PACK_RECORD, content)
        return pack

    def _record(self, splits: dict[str, PackedSplit]) -> Pack:
        listed = {
            split: found.model_copy(update={"listed_in": f"{split}.txt"})
            for split, found in self._manifest.splits.items()
        }
        own = self._manifest.model_copy(update={"splits": listed, "folder": self._folder})
        return Pack(
            version=VERSION, shard_size=self._shard_size, manifest=own, splits=splits,
            folder=self._folder,
        )  # fmt: skip

    def _split(self, split_plan: SplitPlan) -> PackedSplit:
        self._folder.joinpath(split_plan.split).mkdir(exist_ok=True)
        names, sizes = split_plan.names, split_plan.shard_bytes
        written = []
        for number, shard in enumerate(self._shards(split_plan)):
            first, end = split_plan.starts[number : number + 2]
            split_plan.index["crc32"][first:end] = shard.crc32
            written.append(
                Shard(
                    name=names[number], images=end - first, bytes=sizes[number],
                    sha256=shard.sha256,
                )
            )  # fmt: skip
        _remove_others(self._folder, split_plan)
        listed = self._manifest.list_file(split_plan.split)
        copy_file(listed, self._folder / f"{split_plan.split}.txt")
        index_file = self._folder / split_plan.index_name
        digest = _write_index(index_file, split_plan.index)
        return PackedSplit(index=index_file.name, index_sha256=digest, shards=tuple(written))

    def _shards(self, split_plan: SplitPlan) -> Iterator["_PackedShard"]:
        """Yield what each shard came to, in order; a few are packed ahead."""
        lines = file_lists.read(self._manifest.list_file(split_plan.split))
        ahead: deque[Future[_PackedShard]] = deque()
        pool = ThreadPoolExecutor(self._jobs)
        try:
            for number, name in enumerate(split_plan.names):
                first, end = split_plan.starts[number : number + 2]
                own = list(shards.entries(islice(lines, end - first), self._labels, first))
                ahead.append(pool.submit(self._shard, self._folder / name, own))
                if len(ahead) > self._jobs:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._stop.clear()

    def _shard(self, path: Path, entries: list[Entry]) -> "_PackedShard":
        shard = self._kept(path, entries) if path.exists() else None
        if shard is not None:
            with self._lock:
                self.stats.kept += 1
                self._progress(len(entries), sum(entry.line.size for entry in entries))
            return shard
        shard = self._write(path, entries)
        with self._lock:
            self.stats.written += 1
        return shard

    def _kept(self, path: Path, entries: list[Entry]) -> "_PackedShard | None":
        """Return a shard that is there, if every byte of it is as it should be."""
        digest, crc32 = hashlib.sha256(), []
        try:
            for _, image, content in shards.read(path, entries):
                self._raise_if_stopped()
                digest.update(content)
                crc32.append(zlib.crc32(image))
        except (shards.DamagedShard, OSError):
            return None
        digest.update(shards.END)
        return _PackedShard(digest.hexdigest(), crc32)

    def _write(self, path: Path, entries: list[Entry]) -> "_PackedShard":
        digest, crc32 = hashlib.sha256(), []
        with replacing(path, single_writer=True) as file:
            for entry in entries:
                self._raise_if_stopped()
                image = self._original(entry)
                content = entry.pack(image)
                file.write(content)
                digest.update(content)
                crc32.append(zlib.crc32(image))
                with self._lock:
                    self._progress(1, len(image))
            file.write(shards.END)
        digest.update(shards.END)
        return _PackedShard(digest.hexdigest(), crc32)

    def _original(self, entry: Entry) -> bytes:
        """Return the file of an image, once it is the one that the manifest lists."""
        path, key = self._root / entry.line.path, self._manifest.dataset
        try:
            image = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror}); smt data verify {key} names all such"
            ) from None
        if hashlib.sha256(image).hexdigest() != entry.line.sha256:
            raise DataError(
                f"{path} has changed since its manifest was made; smt data verify {key} names all "
                f"such files, smt data manifest {key} takes the data as they are"
            )
        return image

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise _Stopped


class _Stopped(Exception):
    """Another shard failed."""


class _PackedShard(NamedTuple):
    """What a shard came to."""

    sha256: str
    crc32: list[int]
    """Of each image."""


@contextmanager
def _claimed(folder: Path, dataset: str, shard_size: int) -> Iterator[None]:
    """Mark a folder as a pack in the making; the mark goes when the body ends well."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / UNFINISHED_PACK
    with marker.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process packs into it; wait for it, or stop it"
            ) from None
        lock.truncate(0)
        lock.write(json.dumps({"dataset": dataset, "shard_size": shard_size}).encode())
        lock.flush()
        (folder / PACK_RECORD).unlink(missing_ok=True)
        yield
        marker.unlink()


def _remove_others(folder: Path, split_plan: SplitPlan) -> None:
    """Remove shards of an earlier packing in other sizes, and what kills have left of shards."""
    own = set(split_plan.names)
    for pattern in ("[0-9]*.tar", ".[0-9]*.tar.tmp"):
        for path in (folder / split_plan.split).glob(pattern):
            if f"{split_plan.split}/{path.name}" not in own:
                path.unlink()


def _write_index(path: Path, index: "np.ndarray[Any, Any]") -> str:
    """Write an index; return its SHA-256."""
    with replacing(path, single_writer=True) as file:
        np.save(file, index, allow_pickle=False)
    return atomic.sha256(path)
