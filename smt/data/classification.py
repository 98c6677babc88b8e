"""Batches for training and evaluation, read in this process or in workers, with the same bytes."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL.Image import Image
from torch.utils.data import Dataset

from smt.config.recipes import ClassificationRecipe
from smt.data.imagenet import ImageFolder
from smt.data.rng import preserved, reseed
from smt.data.sampler import Job, Schedule
from smt.data.transforms.evaluation import EvalTransform
from smt.data.workers import MEND, Loader, Substitute, errors_returned, read_all
from smt.datasets.decoding import decode
from smt.errors import DataError

if TYPE_CHECKING:
    from smt.data.transforms.classification import TrainTransform


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


Pair = tuple[torch.Tensor, torch.Tensor]
"""Images and labels."""


class TrainLoader(Loader[Pair]):
    """The training images of this process, epoch by epoch.

    What an epoch yields depends on the seed, the recipe and the data set; `workers` (0: read in
    this process) and the number of processes only change who reads what.

    Raises:
        UserError: `world_size` processes cannot share a global batch equally.
    """

    def __init__(
        self,
        folder: ImageFolder,
        recipe: ClassificationRecipe,
        *,
        seed: int,
        rank: int,
        world_size: int,
        workers: int,
    ) -> None:
        schedule = Schedule(len(folder), recipe.global_batch, recipe.device_batch, rank, world_size)
        super().__init__(_TrainReader(folder, recipe, seed), schedule, seed, workers)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Chunk]:
        """Yield this process's chunks from `start_step` on; the steps before are not read.

        Raises:
            DataError: an image cannot be read and the recipe says stop, or a worker died.
        """
        for job, (images, labels) in self.read(epoch, start_step):
            yield Chunk(images, labels, job.step, job.chunk)


def eval_batches(
    folder: ImageFolder, recipe: ClassificationRecipe, *, rank: int, world_size: int, workers: int
) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    """Yield images (B, 3, R, R) float32 normalised and labels (B,) int64 of this process.

    Over all processes every image comes once; nothing is padded, so the last batch may be smaller.

    Raises:
        DataError: an image cannot be read (whatever the recipe says of training), or a worker died.
    """
    own = np.arange(rank, len(folder), world_size)
    batches = [own[i : i + recipe.device_batch] for i in range(0, len(own), recipe.device_batch)]
    yield from read_all(_EvalReader(folder, recipe), batches, workers)


_TOGETHER = 16
"""Images decoded before they are augmented. By turns, each would push the other's code out of the
processor's caches, which takes an eighth of an image's time at 32 x 32 pixels."""


class _TrainReader(Dataset[Any]):
    """Reads and augments the images of a job; each image's draws are its own."""

    def __init__(self, folder: ImageFolder, recipe: ClassificationRecipe, seed: int) -> None:
        self._folder, self._recipe, self._seed = folder, recipe, seed
        skip = recipe.unreadable_images == "skip"
        self._substitute = Substitute(len(folder), self._path, seed=seed, allowed=skip)

    @cached_property
    def _transform(self) -> "TrainTransform":
        from smt.data.transforms.classification import (
            TrainTransform,
        )  # timm, which an evaluation does without

        return TrainTransform(self._recipe)

    @errors_returned
    def __getitem__(self, job: Job) -> tuple[Pair, list[str]]:
        indices = job.indices.tolist()
        images = _empty(len(indices), self._recipe.resolution)
        labels: list[int] = []
        warnings: list[str] = []
        with preserved():
            for start in range(0, len(indices), _TOGETHER):
                group = slice(start, start + _TOGETHER)
                decoded = [
                    self._substitute.read(self._read, job.epoch, index, warnings)
                    for index in indices[group]
                ]
                labels += [label for _, label in decoded]
                for out, index, (image, _) in zip(
                    images[group], indices[group], decoded, strict=True
                ):
                    reseed(self._seed, "augment", job.epoch, index)
                    self._transform(image, out)
        return (images, torch.tensor(labels)), warnings

    def _path(self, index: int) -> Path:
        return self._folder.samples[index][0]

    def _read(self, index: int) -> tuple[Image, int]:
        path, label = self._folder.samples[index]
        return decode(path), label


class _EvalReader(Dataset[Any]):
    """Reads the images of a batch for evaluation."""

    def __init__(self, folder: ImageFolder, recipe: ClassificationRecipe) -> None:
        self._folder, self._resolution = folder, recipe.resolution
        self._transform = EvalTransform(recipe)

    @errors_returned
    def __getitem__(self, indices: np.ndarray) -> Pair:
        images = _empty(len(indices), self._resolution)
        samples = [self._folder.samples[index] for index in indices.tolist()]
        for out, (path, _) in zip(images, samples, strict=True):
            try:
                self._transform(decode(path), out)
            except DataError as error:
                raise DataError(f"{error}; {MEND}: an evaluation needs every image") from None
        return images, torch.tensor([label for _, label in samples])


def _empty(images: int, resolution: int) -> torch.Tensor:
    """Return room for images, (B, 3, R, R) float32."""
    return torch.empty(images, 3, resolution, resolution)
