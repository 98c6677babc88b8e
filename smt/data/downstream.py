"""Batches for detection and segmentation, read in this process or in workers, with the same bytes.

What a batch holds depends on seed, recipe and data set; the number of workers and of processes only
changes who reads what. Evaluation sees one image at a time, so that no image's result depends on
its neighbours.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from smt.config.recipes import DetectionRecipe, DownstreamRecipe, PolySchedule, SegmentationRecipe
from smt.data.ade20k import ADE20KSplit
from smt.data.coco import CocoSplit
from smt.data.rng import preserved, reseed
from smt.data.sampler import Job, Schedule
from smt.data.transforms.detection import (
    DetectionEvalTransform,
    DetectionInput,
    DetectionSample,
    DetectionTrainTransform,
)
from smt.data.transforms.image import padded_size
from smt.data.transforms.segmentation import SegmentationTrainTransform
from smt.data.workers import MEND, Loader, Substitute, errors_returned, read_all
from smt.errors import DataError


@dataclass(frozen=True)
class DetectionBatch:
    """What one process runs through a detector at once."""

    images: Tensor
    """(B, 3, H, W) float32, normalised, each padded with zeros at its right and bottom."""
    samples: list[DetectionSample]
    """The objects of each image, and its size without padding; `image` is a view of `images`."""


@dataclass(frozen=True)
class SegmentationBatch:
    """What one process runs through a segmenter at once."""

    images: Tensor
    """(B, 3, H, W) float32, normalised."""
    labels: Tensor
    """(B, H, W) int64, 255 where there is no class."""


def detection_loader(
    split: CocoSplit, recipe: DetectionRecipe, *, masks: bool, seed: int, rank: int,
    world_size: int, workers: int,
) -> Loader[DetectionBatch]:  # fmt: skip
    """Return the batches of a detector, landscapes beside landscapes; with `masks` or without.

    Raises:
        UserError: `world_size` processes cannot share a global batch equally.
    """
    height, width = split.images.sizes[split.trainable].T
    schedule = _schedule(len(split.trainable), recipe, rank, world_size, height > width)
    return Loader(_DetectionReader(split, recipe, seed, masks), schedule, seed, workers)


def segmentation_loader(
    split: ADE20KSplit, recipe: SegmentationRecipe, *, seed: int, rank: int, world_size: int,
    workers: int,
) -> Loader[SegmentationBatch]:  # fmt: skip
    """Return the batches of a segmenter.

    Raises:
        UserError: `world_size` processes cannot share a global batch equally.
    """
    schedule = _schedule(len(split), recipe, rank, world_size, None)
    return Loader(_SegmentationReader(split, recipe, seed), schedule, seed, workers)


def _schedule(
    images: int, recipe: DownstreamRecipe, rank: int, world_size: int, groups: np.ndarray | None
) -> Schedule:
    schedule = recipe.schedule
    interval = schedule.interval if isinstance(schedule, PolySchedule) else None
    return Schedule(
        images, recipe.global_batch, recipe.device_batch, rank, world_size, interval, groups
    )


class _Reader(Dataset[Any]):
    """Reads and augments the images of a job; each image's draws are its own."""

    _augment: Callable[..., Any]
    """Makes a sample of what `_read` returns, with draws from the global generators."""

    def __init__(self, images: int, recipe: DownstreamRecipe, seed: int) -> None:
        self._seed = seed
        skip = recipe.unreadable_images == "skip"
        self._substitute = Substitute(images, self._path, seed=seed, allowed=skip)

    @errors_returned
    def __getitem__(self, job: Job) -> tuple[Any, list[str]]:
        warnings: list[str] = []
        samples = []
        with preserved():
            for place, index in enumerate(job.indices.tolist()):
                arrays = self._substitute.read(self._read, job.epoch, index, warnings)
                # An image may come twice in one epoch of an endless row, with other draws.
                reseed(self._seed, "augment", job.epoch, job.step, job.chunk, place)
                samples.append(self._augment(*arrays))
        return self._batch(samples), warnings

    def _path(self, index: int) -> Path:
        """Return an image's file, by its number among those that are trained on."""
        raise NotImplementedError

    def _read(self, index: int) -> tuple[Any, ...]:
        """Return what `_augment` takes."""
        raise NotImplementedError

    def _batch(self, samples: list[Any]) -> Any:
        """Return samples as one batch."""
        raise NotImplementedError


class _DetectionReader(_Reader):
    def __init__(self, split: CocoSplit, recipe: DetectionRecipe, seed: int, masks: bool) -> None:
        super().__init__(len(split.trainable), recipe, seed)
        self._split, self._masks = split, masks
        self._augment = DetectionTrainTransform(recipe.augment)

    def _path(self, index: int) -> Path:
        return self._split.images[int(self._split.trainable[index])].path

    def _read(self, index: int) -> tuple[Any, ...]:
        image = int(self._split.trainable[index])
        found = self._split.annotation(image)
        masks = self._split.masks(image) if self._masks else None
        return self._split.picture(image), found.boxes, found.labels, masks

    def _batch(self, samples: list[DetectionSample]) -> DetectionBatch:
        images = padded([sample.image for sample in samples])
        # A view, so that a worker sends each image once.
        views = [
            replace(each, image=image[:, : each.size[0], : each.size[1]])
            for each, image in zip(samples, images, strict=True)
        ]
        return DetectionBatch(images, views)


class _SegmentationReader(_Reader):
    def __init__(self, split: ADE20KSplit, recipe: SegmentationRecipe, seed: int) -> None:
        super().__init__(len(split), recipe, seed)
        self._split = split
        self._augment = SegmentationTrainTransform(recipe.augment)

    def _path(self, index: int) -> Path:
        return self._split.images[index].image

    def _read(self, index: int) -> tuple[Any, ...]:
        return self._split.picture(index), self._split.label_map(index)

    def _batch(self, samples: list[tuple[Tensor, Tensor]]) -> SegmentationBatch:
        images, labels = zip(*samples, strict=True)
        return SegmentationBatch(torch.stack(images), torch.stack(labels))


def padded(images: Sequence[Tensor]) -> Tensor:
    """Return images (3, H_i, W_i) as one batch (B, 3, H, W): zeros at right and bottom.

    H and W are the smallest multiples of 32 that hold all of them.
    """
    largest = [max(image.shape[axis] for image in images) for axis in (1, 2)]
    height, width = padded_size((largest[0], largest[1]))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for out, image in zip(batch, images, strict=True):
        out[:, : image.shape[1], : image.shape[2]] = image
    return batch


def detection_inputs(
    split: CocoSplit, recipe: DetectionRecipe, *, rank: int, world_size: int, workers: int
) -> Generator[tuple[int, DetectionInput], None, None]:
    """Yield number and input of each image that this process evaluates.

    Over all processes every image comes once.

    Raises:
        DataError: an image cannot be read (whatever the recipe says of training), or a worker died.
    """
    own = range(rank, len(split), world_size)
    reader = _DetectionInputs(split, DetectionEvalTransform(recipe.evaluation))
    yield from zip(own, read_all(reader, own, workers), strict=True)


class _DetectionInputs(Dataset[Any]):
    def __init__(self, split: CocoSplit, transform: DetectionEvalTransform) -> None:
        self._split, self._transform = split, transform

    @errors_returned
    def __getitem__(self, index: int) -> DetectionInput:
        return self._transform(_needed(self._split, index))


def segmentation_inputs(
    split: ADE20KSplit, *, rank: int, world_size: int, workers: int
) -> Generator[tuple[int, np.ndarray, np.ndarray], None, None]:
    """Yield number, pixels (H, W, 3) uint8 and classes (H, W) uint8 of each image, as on disk.

    They are those that this process evaluates: over all processes every image comes once.

    Raises:
        DataError: an image cannot be read (whatever the recipe says of training), or a worker died.
    """
    own = range(rank, len(split), world_size)
    for index, arrays in zip(own, read_all(_SegmentationInputs(split), own, workers), strict=True):
        yield index, *arrays


class _SegmentationInputs(Dataset[Any]):
    def __init__(self, split: ADE20KSplit) -> None:
        self._split = split

    @errors_returned
    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return np.array(_needed(self._split, index)), self._split.label_map(index)


def _needed(split: CocoSplit | ADE20KSplit, index: int) -> Image.Image:
    try:
        return split.picture(index)
    except DataError as error:
        raise DataError(f"{error}; {MEND}: an evaluation needs every image") from None
