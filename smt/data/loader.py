"""Batches for training and evaluation, read in this process or in workers, with the same bytes."""

import logging
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch.utils.data import DataLoader, Dataset

from smt.data.augment import EvalTransform, TrainTransform
from smt.data.imagenet import ImageFolder, decode
from smt.data.rng import derive, preserved, reseed
from smt.data.sampler import Job, Schedule
from smt.errors import DataError, first_line
from smt.spec import Recipe

log = logging.getLogger(__name__)

_REPLACEMENTS = 10
"""Images tried in place of one that cannot be read, before the data set is given up."""

_RESTARTS = 3
"""Times in a row that dead workers are replaced without a batch in between."""

_MEND = "copy it again from the source of the data set"


@dataclass(frozen=True)
class Chunk:
    """What one process runs through the model at once."""

    images: torch.Tensor
    """(B, 3, R, R) float32, augmented and normalised."""
    labels: torch.Tensor
    """(B,) int64."""
    step: int
    """Global step within the epoch."""
    chunk: int
    """Number of the chunk in its global batch, over all processes."""


Loaded = tuple[torch.Tensor, torch.Tensor, list[str]]
"""Images, labels, and what to tell of images that were replaced."""


class TrainLoader:
    """The training images of this process, epoch by epoch.

    What an epoch yields depends on the seed, the recipe and the data set; `workers` (0: read in
    this process) and the number of processes only change who reads what.

    Raises:
        UserError: `world_size` processes cannot share a global batch equally.
    """

    def __init__(
        self, folder: ImageFolder, recipe: Recipe, *, seed: int, rank: int, world_size: int,
        workers: int,
    ) -> None:  # fmt: skip
        self._schedule = Schedule(
            len(folder), recipe.global_batch, recipe.device_batch, rank, world_size
        )
        self._reader = _TrainReader(folder, recipe, seed)
        self._seed, self._workers = seed, workers
        self.replaced = 0
        """Unreadable images that others have taken the place of so far, on this process."""

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of an epoch."""
        return self._schedule.steps_per_epoch

    @property
    def accumulation(self) -> int:
        """Chunks of this process in a global step."""
        return self._schedule.accumulation

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Chunk]:
        """Yield this process's chunks from `start_step` on; the steps before are not read.

        Raises:
            DataError: an image cannot be read and the recipe says stop, or a worker died.
        """
        jobs = list(self._schedule.jobs(self._seed, epoch, start_step))
        loaded = _read(self._reader, jobs, self._workers)
        for job, (images, labels, warnings) in zip(jobs, loaded, strict=True):
            self.replaced += len(warnings)
            for warning in warnings:
                log.warning("%s", warning)
            yield Chunk(images, labels, job.step, job.chunk)


def eval_batches(
    folder: ImageFolder, recipe: Recipe, *, rank: int, world_size: int, workers: int
) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    """Yield images (B, 3, R, R) float32 normalised and labels (B,) int64 of this process.

    Over all processes every image comes once; nothing is padded, so the last batch may be smaller.

    Raises:
        DataError: an image cannot be read (whatever the recipe says of training), or a worker died.
    """
    own = np.arange(rank, len(folder), world_size)
    batches = [own[i : i + recipe.device_batch] for i in range(0, len(own), recipe.device_batch)]
    for images, labels, _ in _read(_EvalReader(folder, recipe), batches, workers):
        yield images, labels


def _errors_returned(read: Callable[..., Loaded]) -> Callable[..., Loaded | DataError]:
    """Return a DataError as a value: raised in a worker, it would come wrapped in tracebacks."""

    @wraps(read)
    def wrapped(*arguments: Any) -> Loaded | DataError:
        try:
            return read(*arguments)
        except DataError as error:
            return error

    return wrapped


_TOGETHER = 16
"""Images decoded before they are augmented. By turns, each would push the other's code out of the
processor's caches, which takes an eighth of an image's time at 32 x 32 pixels."""


class _TrainReader(Dataset):
    """Reads and augments the images of a job; each image's draws are its own."""

    def __init__(self, folder: ImageFolder, recipe: Recipe, seed: int) -> None:
        self._folder, self._recipe, self._seed = folder, recipe, seed
        self._transform = TrainTransform(recipe)

    @_errors_returned
    def __getitem__(self, job: Job) -> Loaded:
        indices = job.indices.tolist()
        images = _empty(len(indices), self._recipe.resolution)
        labels: list[int] = []
        warnings: list[str] = []
        samples = [self._folder.samples[index] for index in indices]
        with preserved():
            for start in range(0, len(indices), _TOGETHER):
                group = slice(start, start + _TOGETHER)
                decoded = [
                    self._read(job.epoch, index, sample, warnings)
                    for index, sample in zip(indices[group], samples[group], strict=True)
                ]
                labels += [label for _, label in decoded]
                for out, index, (image, _) in zip(
                    images[group], indices[group], decoded, strict=True
                ):
                    reseed(self._seed, "augment", job.epoch, index)
                    self._transform(image, out)
        return images, torch.tensor(labels), warnings

    def _read(
        self, epoch: int, index: int, sample: tuple[Path, int], warnings: list[str]
    ) -> tuple[Image, int]:
        """Return a sample's image and label, or those of what takes its place."""
        path, label = sample
        try:
            return decode(path), label
        except DataError as error:
            if self._recipe.unreadable_images == "stop":
                raise DataError(f"{error}; {_MEND} or set unreadable_images: skip") from None
            return self._replacement(epoch, index, error, warnings)

    def _replacement(
        self, epoch: int, index: int, error: DataError, warnings: list[str]
    ) -> tuple[Image, int]:
        for attempt in range(_REPLACEMENTS):
            draw = derive(self._seed, "replacement", epoch, index, attempt)
            path, label = self._folder.samples[draw % len(self._folder)]
            try:
                image = decode(path)
            except DataError as another:
                error = another
                continue
            warnings.append(f"{error}; {path} takes its place in epoch {epoch}")
            return image, label
        raise DataError(f"{error}, nor {_REPLACEMENTS} others drawn in its place; {_MEND}")


class _EvalReader(Dataset):
    """Reads the images of a batch for evaluation."""

    def __init__(self, folder: ImageFolder, recipe: Recipe) -> None:
        self._folder, self._resolution = folder, recipe.resolution
        self._transform = EvalTransform(recipe)

    @_errors_returned
    def __getitem__(self, indices: np.ndarray) -> Loaded:
        images = _empty(len(indices), self._resolution)
        samples = [self._folder.samples[index] for index in indices.tolist()]
        for out, (path, _) in zip(images, samples, strict=True):
            try:
                self._transform(decode(path), out)
            except DataError as error:
                raise DataError(f"{error}; {_MEND}: an evaluation needs every image") from None
        return images, torch.tensor([label for _, label in samples]), []


def _empty(images: int, resolution: int) -> torch.Tensor:
    """Return room for images, (B, 3, R, R) float32."""
    return torch.empty(images, 3, resolution, resolution)


def _read(reader: Dataset, jobs: Sequence[Any], workers: int) -> Iterator[Loaded]:
    """Yield what `reader` makes of each job, in order."""
    loaded = _in_workers(reader, jobs, workers) if workers else (reader[job] for job in jobs)
    # Closed at once, the workers end at once: left to the garbage collector after an error, they
    # have been seen to hold up the process for 5 s each.
    with closing(loaded):
        for result in loaded:
            if isinstance(result, DataError):
                raise result
            yield result


def _in_workers(reader: Dataset, jobs: Sequence[Any], workers: int) -> Generator[Any, None, None]:
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


def _worker_pool(reader: Dataset, jobs: Sequence[Any], workers: int) -> DataLoader:
    return DataLoader(
        reader,
        batch_size=None,  # a job is a whole batch: one worker makes it
        sampler=jobs,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=torch.cuda.is_available(),
        # Without one of its own, the loader would draw from torch's global generator.
        generator=torch.Generator(),
    )


def _iterator(loader: DataLoader) -> Iterator[Any]:
    """Return an iterator that reports a worker's death where it is waited for, and only there.

    By itself torch answers SIGCHLD with an exception out of whatever line the process is at.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    # Only the main thread may set a handler, and one set from C cannot be set again.
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    return iterator


def _unchanged(loaded: Any) -> Any:
    return loaded
