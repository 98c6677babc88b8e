"""Loading of training and evaluation data, in this process or in worker processes.

What a reader returns is a pure function of its key, which names epoch, step and images. So the
bytes are the same for any number of workers, and a worker that died can be replaced.
"""

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any, Generic, TypeVar
from warnings import filterwarnings

import torch
from torch.utils.data import DataLoader, Dataset

from smt.config.recipes import DownstreamRecipe
from smt.data.rng import derive_seed, preserve_rng_state, reseed
from smt.data.sampler import MicroBatchIndices, MicroBatchSampler
from smt.errors import DataError, first_line

log = logging.getLogger(__name__)

C = TypeVar("C")
T = TypeVar("T")

_REMEDY = "copy it again from the source of the data set"

_RESTARTS = 3
"""Times in a row that dead workers are replaced without a micro-batch in between."""

_PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when the thread that started it ends."""

_REPLACEMENTS = 10
"""Images tried in place of one that cannot be read, before the data set is given up."""


def return_data_errors(read: Callable[..., T]) -> Callable[..., T | DataError]:
    """Return a DataError as a value: raised in a worker, it would come wrapped in tracebacks."""

    @wraps(read)
    def wrapped(*arguments: Any) -> T | DataError:
        try:
            return read(*arguments)
        except DataError as error:
            return error

    return wrapped


@contextmanager
def every_image_required() -> Iterator[None]:
    """Let an image that cannot be read end an evaluation, whatever the recipe says of training."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{error}; {_REMEDY}: an evaluation needs every image") from None


class ImageReplacer:
    """Reads another image in place of one that cannot be read, where a recipe says so.

    `path` returns the file of an image by its number below `images`, for the warning.
    """

    def __init__(
        self, images: int, path: Callable[[int], object], *, seed: int, allowed: bool
    ) -> None:
        self._images, self._path, self._seed, self._allowed = images, path, seed, allowed

    def read(self, read: Callable[[int], T], epoch: int, index: int, warnings: list[str]) -> T:
        """Return what `read` returns for image `index`, or for a replacement, with a warning.

        Raises:
            DataError: the image cannot be read and none may take its place, or none can be read.
        """
        try:
            return read(index)
        except DataError as error:
            if not self._allowed:
                raise DataError(f"{error}; {_REMEDY} or set unreadable_images: skip") from None
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
            other = derive_seed(self._seed, "replacement", epoch, index, attempt) % self._images
            try:
                replacement = read(other)
            except DataError as next_error:
                error = next_error
                continue
            warnings.append(f"{error}; {self._path(other)} takes its place in epoch {epoch}")
            return replacement
        raise DataError(f"{error}, nor {_REPLACEMENTS} others in its place; {_REMEDY}")


class AugmentingReader(Dataset[Any]):
    """Reads and augments the images of a micro-batch; each image has random numbers of its own."""

    _augment: Callable[..., Any]
    """Makes a sample of what `_read` returns, with random numbers of the global generators."""

    def __init__(self, images: int, recipe: DownstreamRecipe, seed: int) -> None:
        self._seed = seed
        skip = recipe.unreadable_images == "skip"
        self._replacer = ImageReplacer(images, self._path, seed=seed, allowed=skip)

    @return_data_errors
    def __getitem__(self, micro_batch: MicroBatchIndices) -> tuple[Any, list[str]]:
        epoch, step, number = micro_batch.epoch, micro_batch.step, micro_batch.number
        warnings: list[str] = []
        samples = []
        with preserve_rng_state():
            for place, index in enumerate(micro_batch.indices.tolist()):
                arrays = self._replacer.read(self._read, epoch, index, warnings)
                # Keyed by place rather than image: with an `interval` an image may come twice in
                # one epoch, and is to be augmented in another way.
                reseed(self._seed, "augment", epoch, step, number, place)
                samples.append(self._augment(*arrays))
        return self._collate(samples), warnings

    def _path(self, index: int) -> Path:
        """Return an image's file, by its number among those that are trained on."""
        raise NotImplementedError

    def _read(self, index: int) -> tuple[Any, ...]:
        """Return what `_augment` takes."""
        raise NotImplementedError

    def _collate(self, samples: list[Any]) -> Any:
        """Return samples as one micro-batch."""
        raise NotImplementedError


class Loader(Generic[C]):
    """The training micro-batches of this process, epoch by epoch.

    `reader` returns the content of a micro-batch, and a warning for each image that was replaced.
    `workers` (0: read in this process) only changes who reads what.
    """

    def __init__(
        self, reader: Dataset[Any], sampler: MicroBatchSampler, seed: int, workers: int
    ) -> None:
        self._reader, self._sampler = reader, sampler
        self._seed, self._workers = seed, workers
        self.replaced = 0
        """Unreadable images that were replaced so far, on this process."""

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of an epoch."""
        return self._sampler.steps_per_epoch

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of this process in a global step."""
        return self._sampler.accumulation_steps

    def micro_batches(
        self, epoch: int, start_step: int = 0
    ) -> Iterator[tuple[MicroBatchIndices, C]]:
        """Yield this process's micro-batches from `start_step` on; the steps before are not read.

        Raises:
            DataError: an image cannot be read and the recipe says stop, or a worker died.
        """
        keys = list(self._sampler.micro_batches(self._seed, epoch, start_step))
        loaded = read_in_order(self._reader, keys, self._workers)
        for key, (content, warnings) in zip(keys, loaded, strict=True):
            self.replaced += len(warnings)
            for warning in warnings:
                log.warning("%s", warning)
            yield key, content


def read_in_order(
    reader: Dataset[Any], keys: Sequence[Any], workers: int
) -> Generator[Any, None, None]:
    """Yield what `reader` returns for each key, in order; `workers` 0 reads in this process.

    Raises:
        DataError: the reader returned it, or a worker died again and again.
    """
    loaded = _in_workers(reader, keys, workers) if workers else (reader[key] for key in keys)
    # Closed at once, the workers end at once: left to the garbage collector after an error, they
    # have been seen to hold up the process for 5 s each.
    with closing(loaded):
        for result in loaded:
            if isinstance(result, DataError):
                raise result
            yield result


def _in_workers(
    reader: Dataset[Any], keys: Sequence[Any], workers: int
) -> Generator[Any, None, None]:
    """Yield what worker processes return for each key, in order.

    What a key gives is a pure function of it, so when a worker dies, new ones begin at the first
    key that has not been yielded. It is an error only when that happens again and again at one key.
    """
    done = deaths = 0
    while done < len(keys):
        try:
            for result in _iterator(_worker_pool(reader, keys[done:], workers)):
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


def _worker_pool(reader: Dataset[Any], keys: Sequence[Any], workers: int) -> DataLoader[Any]:
    # Who chooses the number says so, once, and of the CPUs that SLURM gave (smt.engine.cpus).
    filterwarnings("ignore", "This DataLoader will create")
    return DataLoader(
        reader,
        batch_size=None,  # a key is a whole micro-batch: one worker reads it
        sampler=keys,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=torch.cuda.is_available(),
        # Without a generator of its own, DataLoader would advance torch's global one.
        generator=torch.Generator(),
        worker_init_fn=partial(_die_with_parent, os.getpid()) if _in_main_thread() else None,
    )


def _die_with_parent(parent: int, worker: int) -> None:
    """Let this worker be killed when the process that reads from it ends, however it ends.

    torch's worker looks for its parent every few seconds, but then waits for ever to send what it
    has read, where that is more than a pipe holds.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before prctl was called
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
