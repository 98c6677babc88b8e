"""Reading every byte of a folder tree: a SHA-256 a file, side by side, in order, resumable.

What was read so far stands in a file, a line a file in the order of the tree. A reading that was
killed resumes from it: what has the size and the times that it had is not read again.
"""

import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

from smt.datasets.scan import FileEntry, Listing
from smt.errors import UserError, first_line
from smt.runs import lock

CHUNK = 2**20
"""Bytes that are read at once."""

_BATCH = 32
"""Files that a thread takes at a time: handing over each alone would cost as much as hashing it."""

_AHEAD = 8192
"""Files in whole folders that may wait for a slow one before them."""

DecodeCheck = Callable[[Path, BinaryIO], object]
"""Given a file and its content, raises a UserError where its bytes are there, but are no image."""


class ProgressCallback:
    """Called with the progress of a reading; this one does nothing."""

    def expect(self, files: int) -> None:
        """Set how many files there are."""

    def __call__(self, files: int, size: int) -> None:
        """Count files and their bytes as done."""


class Digest(NamedTuple):
    """What reading a file gave."""

    sha256: str | None
    """None where it could not be read."""
    problem: str | None = None
    """Why it could not be read, or not be decoded."""


def default_jobs() -> int:
    """Return how many files to read at a time.

    A disk on the network wants more than there are CPUs; many more only stand in each other's way.
    """
    return min(max(4, 2 * len(os.sched_getaffinity(0))), 16)


class HashCache:
    """SHA-256 of the files that an unfinished reading has read, in the order of the tree.

    Use it as a context manager; it is for one process at a time.

    Raises:
        UserError: another process is reading the same data set.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.wait_in_job(lambda: _open_locked(path), lambda: "another process", path)
        if file is None:
            raise UserError(f"{path}: another process reads this data set; wait for it, or stop it")
        self._file = file
        _cut_after_last_line(self._file)
        self._end = self._file.tell()
        self._earlier = path.open("rb")
        self._line: tuple[list[str], str] | None = ([], "")

    def __enter__(self) -> "HashCache":
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._file.tell():
            self.finish()
        self._earlier.close()
        self._file.close()

    def digest(self, folder: str, file: FileEntry) -> str | None:
        """Return the SHA-256 of a file that was read before and is the same still.

        To be asked of files in order: the file is as long as the data set and read along with it.
        """
        path = [*folder.split("/"), file.name]
        while self._line is not None and self._line[0] < path:
            self._line = self._next()
        if self._line is None or self._line[0] != path:
            return None
        stamp, _, sha256 = self._line[1].rpartition("\t")
        return sha256 if stamp == _stamp(file) else None

    def _next(self) -> tuple[list[str], str] | None:
        if self._earlier.tell() >= self._end:
            return None
        line = self._earlier.readline().decode(errors="replace")
        path, _, rest = line.rstrip("\n").partition("\t")
        return path.split("/"), rest

    def add(self, folder: str, files: Iterable[tuple[FileEntry, Digest]]) -> None:
        """Keep what was read; what has a problem will be read again."""
        lines = [
            f"{folder}/{file.name}\t{_stamp(file)}\t{digest.sha256}\n"
            for file, digest in files
            if digest.problem is None
        ]
        self._file.write("".join(lines).encode())
        self._file.flush()

    def finish(self) -> None:
        """Forget everything: the reading has come to its end, and the next one is a new one."""
        self.path.unlink(missing_ok=True)


def _stamp(file: FileEntry) -> str:
    return f"{file.size}\t{file.times[0]}\t{file.times[1]}"


def _open_locked(path: Path) -> BinaryIO | None:
    """Return a file, locked until it is closed; None if another process has it."""
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        if lock.is_at(file, path):
            return file
        file.close()  # a reading that has ended has removed it since


def _cut_after_last_line(file: BinaryIO) -> None:
    """Drop a last line that a crash left without its end, and go to the end."""
    size = file.seek(0, os.SEEK_END)
    start = max(size - CHUNK, 0)
    file.seek(start)
    file.truncate(start + file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


@dataclass
class HashStats:
    """How many files a reading has read."""

    read: int = 0
    """Files read."""
    cached: int = 0
    """Files whose SHA-256 came from the cache."""


class FileHasher:
    """Hashes the files of folders, `jobs` at a time; with a `cache`, none of them twice."""

    def __init__(
        self, root: Path, cache: HashCache | None = None, *, jobs: int | None = None,
        decode_check: DecodeCheck | None = None, progress: ProgressCallback | None = None,
    ) -> None:  # fmt: skip
        self.root, self.stats = root, HashStats()
        jobs = jobs or default_jobs()
        self._cache, self._jobs, self._decode_check = cache, jobs, decode_check
        self._progress = progress or ProgressCallback()

    def read(
        self, listings: Iterable[Listing]
    ) -> Generator[tuple[Listing, list[Digest]], None, None]:
        """Yield every folder with a digest for each of its files, in order.

        Memory is bounded by the largest folder, not by their number. Who may stop before the last
        has to close it, for threads of it wait until then.
        """
        pool = ThreadPoolExecutor(self._jobs)
        try:
            waiting: deque[_Folder] = deque()
            files = 0
            for listing in listings:
                waiting.append(self._submit(pool, listing))
                files += len(listing.files)
                while files > _AHEAD:
                    files -= len(waiting[0].listing.files)
                    yield self._finish(waiting.popleft())
            while waiting:
                yield self._finish(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, listing: Listing) -> "_Folder":
        cached = [self._cached(listing.folder, file) for file in listing.files]
        unread = [i for i, sha256 in enumerate(cached) if sha256 is None]
        batches = [unread[start : start + _BATCH] for start in range(0, len(unread), _BATCH)]
        futures = [
            pool.submit(
                _hash_files, self.root / listing.folder, [listing.files[i] for i in batch],
                self._decode_check,
            )
            for batch in batches
        ]  # fmt: skip
        done = len(cached) - len(unread)
        self.stats.cached += done
        self._progress(done, sum(f.size for f, k in zip(listing.files, cached, strict=True) if k))
        return _Folder(listing, cached, list(zip(batches, futures, strict=True)))

    def _cached(self, folder: str, file: FileEntry) -> str | None:
        return self._cache.digest(folder, file) if self._cache else None

    def _finish(self, folder: "_Folder") -> tuple[Listing, list[Digest]]:
        files, digests = folder.listing.files, [Digest(sha256) for sha256 in folder.cached]
        for batch, future in folder.batches:
            for index, digest in zip(batch, future.result(), strict=True):
                digests[index] = digest
            if self._cache:
                self._cache.add(folder.listing.folder, [(files[i], digests[i]) for i in batch])
            self.stats.read += len(batch)
            self._progress(len(batch), sum(files[i].size for i in batch))
        return folder.listing, digests


class _Folder(NamedTuple):
    """A folder that is being read."""

    listing: Listing
    cached: list[str | None]
    """The digest of each file that the reading before had read."""
    batches: list[tuple[list[int], Future[list[Digest]]]]


def _hash_files(
    folder: Path, files: list[FileEntry], decode_check: DecodeCheck | None
) -> list[Digest]:
    buffer = memoryview(bytearray(CHUNK))
    return [_hash_file(folder / file.name, file, buffer, decode_check) for file in files]


def _hash_file(
    path: Path, file: FileEntry, buffer: memoryview, decode_check: DecodeCheck | None
) -> Digest:
    if file.error is not None:
        return Digest(None, f"cannot be read ({file.error})")
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb", buffering=0) as content:
            while count := content.readinto(buffer):
                digest.update(buffer[:count])
                size += count
            if size != file.size:
                was = f"{file.size} bytes, then {size}"
                return Digest(None, f"was changed while it was read ({was})")
            if decode_check is not None:
                content.seek(0)
                decode_check(path, BufferedReader(content))
    except OSError as error:
        return Digest(None, f"cannot be read ({error.strerror})")
    except UserError as error:
        return Digest(digest.hexdigest(), first_line(error))
    return Digest(digest.hexdigest())
