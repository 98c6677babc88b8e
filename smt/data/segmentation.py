"""Micro-batches of segmenters, and images for their evaluation, one at a time.

What a micro-batch holds depends on seed, recipe and data set; the number of workers and of
processes only changes who reads what.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from smt.config.recipes import SegmentationRecipe
from smt.data.ade20k import ADE20KSplit
from smt.data.loader import (
    AugmentingReader,
    Loader,
    every_image_required,
    read_in_order,
    return_data_errors,
)
from smt.data.sampler import MicroBatchSampler
from smt.data.transforms.image import Size
from smt.data.transforms.segmentation import SegmentationSample, SegmentationTrainTransform


class SegmentationBatch(NamedTuple):
    """A micro-batch: what one process runs through a segmenter at once.

    A tuple, since DataLoader pins the memory of tuples where there is a GPU, not of dataclasses.
    """

    images: Tensor
    """(B, 3, H, W) uint8."""
    labels: Tensor
    """(B, H, W) uint8, 255 where there is no class."""
    sizes: tuple[Size, ...]
    """Height and width of each image; beyond, it is padded."""


def segmentation_loader(
    split: ADE20KSplit, recipe: SegmentationRecipe, *, seed: int, rank: int, world_size: int,
    workers: int,
) -> Loader[SegmentationBatch]:  # fmt: skip
    """Return the micro-batches of a segmenter.

    Raises:
        UserError: `world_size` processes cannot share a global batch equally.
    """
    sampler = MicroBatchSampler(
        len(split),
        recipe.global_batch,
        recipe.device_batch,
        rank,
        world_size,
        interval=recipe.schedule.interval,
    )
    return Loader(_TrainReader(split, recipe, seed), sampler, seed, workers)


class _TrainReader(AugmentingReader):
    def __init__(self, split: ADE20KSplit, recipe: SegmentationRecipe, seed: int) -> None:
        super().__init__(len(split), recipe, seed)
        self._split = split
        self._augment = SegmentationTrainTransform(recipe.augment)

    def _path(self, index: int) -> Path:
        return self._split.images[index].image

    def _read(self, index: int) -> tuple[Any, ...]:
        return self._split.load_image(index), self._split.label_map(index)

    def _collate(self, samples: list[SegmentationSample]) -> SegmentationBatch:
        images, labels, sizes = zip(*samples, strict=True)
        return SegmentationBatch(torch.stack(images), torch.stack(labels), sizes)


def segmentation_inputs(
    split: ADE20KSplit, *, rank: int, world_size: int, workers: int
) -> Generator[tuple[int, np.ndarray, np.ndarray], None, None]:
    """Yield number, pixels (H, W, 3) uint8 and classes (H, W) uint8 of each image, as on disk.

    They are those that this process evaluates: over all processes every image comes once.

    Raises:
        DataError: an image cannot be read (whatever the recipe says of training), or a worker died.
    """
    own = range(rank, len(split), world_size)
    for index, arrays in zip(own, read_in_order(_EvalReader(split), own, workers), strict=True):
        yield index, *arrays


class _EvalReader(Dataset[Any]):
    def __init__(self, split: ADE20KSplit) -> None:
        self._split = split

    @return_data_errors
    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        with every_image_required():
            image = self._split.load_image(index)
        return np.array(image), self._split.label_map(index)
