"""Worker processes that read: what they make of a job is a pure function of what it names."""

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial, wraps
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from smt.data.rng import derive
from smt.data.sampler import Job, Schedule
from smt.errors import DataError, first_line

log = logging.getLogger(__name__)

C = TypeVar("C")
T = TypeVar("T")

MEND = "copy it again from the source of the data set"

_RESTARTS = 3
"""Times in a row that dead workers are replaced without a batch in between."""

_PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when the thread that started it ends."""

_REPLACEMENTS = 10
"""Images tried in place of one that cannot be read, before the data set is given up."""


def errors_returned(read: Callable[..., T]) -> Callable[..., T | DataError]:
    """Return a DataError as a value: raised in a worker, it would come wrapped in tracebacks."""

    @wraps(read)
    def wrapped(*arguments: Any) -> T | DataError:
        try:
            return read(*arguments)
        except DataError as error:
            return error

    return wrapped


class Substitute:
    """Other images in place of those that cannot be read, where a recipe says so.

    `path` tells an image's file by its number below `images`, for the warning.
    """

    def __init__(
        self, images: int, path: Callable[[int], object], *, seed: int, allowed: bool
    ) -> None:
        self._images, self._path, self._seed, self._allowed = images, path, seed, allowed

    def read(self, read: Callable[[int], T], epoch: int, index: int, warnings: list[str]) -> T:
        """Return what `read` makes of image `index`, or of another one, which is warned of.

        Raises:
            DataError: the image cannot be read and none may take its place, or none can be read.
        """
        try:
            return read(index)
        except DataError as error:
            if not self._allowed:
                raise DataError(f"{error}; {MEND} or set unreadable_images: skip") from None
            return self._other(read, epoch, index, error, warnings)

    def _other(
        self,
        read: Callable[[int], T],
        epoch: int,
        index: int,
        error: DataError,
        warnings: list[str],
    ) -> T:
        for attempt in range(_REPLACEMENTS):
            other = derive(self._seed, "replacement", epoch, index, attempt) % self._images
            try:
                found = read(other)
            except DataError as another:
                error = another
                continue
            warnings.append(f"{error}; {self._path(other)} takes its place in epoch {epoch}")
            return found
        raise DataError(f"{error}, nor {_REPLACEMENTS} others drawn in its place; {MEND}")


class Loader(Generic[C]):
    """The training batches of this process, epoch by epoch.

    `reader` makes of a job its content, and a list of what to tell of images that were replaced.
    `workers` (0: read in this process) only changes who reads what.
    """

    def __init__(self, reader: Dataset[Any], schedule: Schedule, seed: int, workers: int) -> None:
        self._reader, self._schedule = reader, schedule
        self._seed, self._workers = seed, workers
        self.replaced = 0
        """Unreadable images that others have taken the place of so far, on this process."""

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of an epoch."""
        return self._schedule.steps_per_epoch

    @property
    def accumulation(self) -> int:
        """Batches of this process in a global step."""
        return self._schedule.accumulation

    def read(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Job, C]]:
        """Yield this process's batches from `start_step` on; the steps before are not read.

        Raises:
            DataError: an image cannot be read and the recipe says stop, or a worker died.
        """
        jobs = list(self._schedule.jobs(self._seed, epoch, start_step))
        loaded = read_all(self._reader, jobs, self._workers)
        for job, (content, warnings) in zip(jobs, loaded, strict=True):
            self.replaced += len(warnings)
            for warning in warnings:
                log.warning("%s", warning)
            yield job, content


def read_all(reader: Dataset[Any], jobs: Sequence[Any], workers: int) -> Generator[Any, None, None]:
    """Yield what `reader` makes of each job, in order; `workers` 0 reads in this process.

    Raises:
        DataError: the reader returned it, or a worker died again and again.
    """
    loaded = _in_workers(reader, jobs, workers) if workers else (reader[job] for job in jobs)
    # Closed at once, the workers end at once: left to the garbage collector after an error, they
    # have been seen to hold up the process for 5 s each.
    with closing(loaded):
        for result in loaded:
            if isinstance(result, DataError):
                raise result
            yield result


def _in_workers(
    reader: Dataset[Any], jobs: Sequence[Any], workers: int
) -> Generator[Any, None, None]:
    """Yield what worker processes make of each job, in order.

    A job is a pure function of what it names, so when a worker dies, new ones begin at the first
    job that has not been handed on. Only when that happens again and again at one job is it told.
    """
    done = deaths = 0
    while done < len(jobs):
        try:
            for result in _iterator(_worker_pool(reader, jobs[done:], workers)):
                yield result
                done, deaths = done + 1, 0
            return
        except (RuntimeError, EOFError, ConnectionError) as error:
            # What a dead worker had sent cannot be fetched from it any more: the last two.
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker ("):
                raise
            reason = f"a process that reads images died ({first_line(error)})"
        deaths += 1
        if deaths > _RESTARTS:
            raise DataError(
                f"{reason}, {deaths} times in a row: most often memory or /dev/shm ran out; lower "
                "`workers` of the scale in params/scales.yaml, or give the job more memory"
            )
        log.warning("%s; starting new ones, nothing is lost", reason)


def _worker_pool(reader: Dataset[Any], jobs: Sequence[Any], workers: int) -> DataLoader[Any]:
    return DataLoader(
        reader,
        batch_size=None,  # a job is a whole batch: one worker makes it
        sampler=jobs,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=torch.cuda.is_available(),
        # Without one of its own, the loader would draw from torch's global generator.
        generator=torch.Generator(),
        worker_init_fn=partial(_end_with, os.getpid()) if _in_main_thread() else None,
    )


def _end_with(parent: int, worker: int) -> None:
    """Let this worker process be killed when the process that reads from it ends, however it ends.

    By itself it would look for it every few seconds, but after that wait for ever to hand on what
    it has read, where that is more than a pipe holds.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended meanwhile
        os._exit(1)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _iterator(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return an iterator that reports a worker's death where it is waited for, and only there.

    By itself torch answers SIGCHLD with an exception out of whatever line the process is at.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    # Only the main thread may set a handler, and one set from C cannot be set again.
    if _in_main_thread() and handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    return iterator


def _unchanged(loaded: Any) -> Any:
    return loaded
