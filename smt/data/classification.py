"""Batches for training and evaluation, read in this process or in workers, with the same bytes."""

from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL.Image import Image
from torch.utils.data import Dataset

from smt.config.recipes import ClassificationRecipe
from smt.data.imagenet import ImageFolder
from smt.data.loader import (
    ImageReplacer,
    Loader,
    every_image_required,
    read_in_order,
    return_data_errors,
)
from smt.data.rng import preserve_rng_state, reseed
from smt.data.sampler import MicroBatchIndices, MicroBatchSampler
from smt.data.transforms.classification_eval import EvalTransform
from smt.data.transforms.erasing import Erasure, Erasures
from smt.data.transforms.image import Normalise
from smt.datasets.decoding import EncodedImage, decode

if TYPE_CHECKING:
    from smt.data.transforms.classification import TrainTransform


class ImageSamples(Protocol):
    """What an evaluation reads: images, each with its class number."""

    @property
    def samples(self) -> Sequence[tuple[Path | EncodedImage, int]]:
        """Each image, for `decode`, and its class number."""

    def __len__(self) -> int: ...


class ClassificationBatch(NamedTuple):
    """A micro-batch: what one process runs through the model at once.

    A tuple, since DataLoader pins the memory of tuples where there is a GPU, not of dataclasses.
    """

    images: torch.Tensor
    """(B, 3, R, R) uint8 in channels_last order, augmented but for what is erased."""
    erasures: Erasures
    labels: torch.Tensor
    """(B,) int64."""
    step: int
    """Global step within the epoch."""
    number: int
    """Of the micro-batch in its global batch, over all processes."""

    def inputs(self, normalise: Normalise) -> torch.Tensor:
        """Return what the model sees, (B, 3, R, R) float32, where `normalise` brings it."""
        return self.erasures.write(normalise(self.images, torch.channels_last))


class TrainLoader(Loader[ClassificationBatch]):
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
        sampler = MicroBatchSampler(
            len(folder), recipe.global_batch, recipe.device_batch, rank, world_size
        )
        super().__init__(_TrainReader(folder, recipe, seed), sampler, seed, workers)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[ClassificationBatch]:
        """Yield this process's micro-batches from `start_step` on; the steps before are not read.

        Raises:
            DataError: an image cannot be read and the recipe says stop, or a worker died.
        """
        for _, batch in self.micro_batches(epoch, start_step):
            yield batch


def eval_batches(
    folder: ImageSamples, recipe: ClassificationRecipe, *, rank: int, world_size: int, workers: int
) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    """Yield images (B, 3, R, R) uint8 and labels (B,) int64 of this process.

    Over all processes every image comes once; nothing is padded, so the last batch may be smaller.

    Raises:
        DataError: an image cannot be read (whatever the recipe says of training), or a worker died.
    """
    own = np.arange(rank, len(folder), world_size)
    batches = [own[i : i + recipe.device_batch] for i in range(0, len(own), recipe.device_batch)]
    yield from read_in_order(_EvalReader(folder, recipe), batches, workers)


_DECODE_GROUP = 16
"""Images that are decoded before they are augmented. Image by image, decoder and augmentation would
evict each other's code from the processor's caches: an eighth of the time at 32 x 32 pixels."""


class _TrainReader(Dataset[Any]):
    """Reads and augments the images of a micro-batch; each image has random numbers of its own."""

    def __init__(self, folder: ImageFolder, recipe: ClassificationRecipe, seed: int) -> None:
        self._folder, self._recipe, self._seed = folder, recipe, seed
        skip = recipe.unreadable_images == "skip"
        self._replacer = ImageReplacer(len(folder), self._path, seed=seed, allowed=skip)

    @cached_property
    def _transform(self) -> "TrainTransform":
        from smt.data.transforms.classification import (
            TrainTransform,
        )  # timm, which an evaluation does without

        return TrainTransform(self._recipe)

    @return_data_errors
    def __getitem__(self, micro_batch: MicroBatchIndices) -> tuple[ClassificationBatch, list[str]]:
        indices = micro_batch.indices.tolist()
        pixels = _empty(len(indices), self._recipe.resolution)
        erasures: list[Erasure | None] = []
        labels: list[int] = []
        warnings: list[str] = []
        with preserve_rng_state():
            for start in range(0, len(indices), _DECODE_GROUP):
                group = slice(start, start + _DECODE_GROUP)
                decoded = [
                    self._replacer.read(self._read, micro_batch.epoch, index, warnings)
                    for index in indices[group]
                ]
                labels += [label for _, label in decoded]
                for out, index, (image, _) in zip(
                    pixels[group], indices[group], decoded, strict=True
                ):
                    reseed(self._seed, "augment", micro_batch.epoch, index)
                    augmented, erasure = self._transform(image)
                    out[:] = np.asarray(augmented)
                    erasures.append(erasure)
        batch = ClassificationBatch(
            _as_images(pixels), Erasures.of(erasures), torch.tensor(labels), micro_batch.step,
            micro_batch.number,
        )  # fmt: skip
        return batch, warnings

    def _path(self, index: int) -> Path | EncodedImage:
        return self._folder.samples[index][0]

    def _read(self, index: int) -> tuple[Image, int]:
        path, label = self._folder.samples[index]
        return decode(path), label


class _EvalReader(Dataset[Any]):
    """Reads the images of a batch for evaluation."""

    def __init__(self, folder: ImageSamples, recipe: ClassificationRecipe) -> None:
        self._folder, self._resolution = folder, recipe.resolution
        self._transform = EvalTransform(recipe)

    @return_data_errors
    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = _empty(len(indices), self._resolution)
        samples = [self._folder.samples[index] for index in indices.tolist()]
        for out, (path, _) in zip(pixels, samples, strict=True):
            with every_image_required():
                out[:] = np.asarray(self._transform(decode(path)))
        return _as_images(pixels), torch.tensor([label for _, label in samples])


def _empty(images: int, resolution: int) -> np.ndarray:
    """Return room for images as they are decoded, (B, R, R, 3) uint8."""
    return np.empty((images, resolution, resolution, 3), np.uint8)


def _as_images(pixels: np.ndarray) -> torch.Tensor:
    """Return the same memory as (B, 3, R, R): channels_last order, which the model works in."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
