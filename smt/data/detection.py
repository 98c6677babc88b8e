"""Micro-batches of detectors, and images for their evaluation.

What a micro-batch holds depends on seed, recipe and data set; the number of workers and of
processes only changes who reads what. Evaluation sees one image at a time, so that no image's
result depends on its neighbours.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from smt.config.recipes import DetectionRecipe
from smt.data.coco import CocoSplit
from smt.data.loader import (
    AugmentingReader,
    Loader,
    every_image_required,
    read_in_order,
    return_data_errors,
)
from smt.data.sampler import MicroBatchSampler
from smt.data.transforms.detection import (
    DetectionEvalTransform,
    DetectionInput,
    DetectionSample,
    DetectionTrainTransform,
)
from smt.data.transforms.image import padded_size


@dataclass(frozen=True)
class DetectionBatch:
    """A micro-batch: what one process runs through a detector at once."""

    images: Tensor
    """(B, 3, H, W) uint8, each padded at its right and bottom."""
    samples: list[DetectionSample]
    """The objects of each image, and its size without padding; `image` is a view of `images`."""

    def pin_memory(self) -> "DetectionBatch":
        """Return it in pinned memory, so that nothing waits for its copy to a GPU.

        DataLoader calls this where there is one; by itself it would pass over a dataclass.
        """
        samples = [
            replace(
                sample,
                boxes=sample.boxes.pin_memory(),
                labels=sample.labels.pin_memory(),
                masks=None if sample.masks is None else sample.masks.pin_memory(),
            )
            for sample in self.samples
        ]
        return _batch(self.images.pin_memory(), samples)


def _batch(images: Tensor, samples: list[DetectionSample]) -> DetectionBatch:
    """Return a batch whose samples are views of `images`: a worker sends each image once."""
    views = [
        replace(sample, image=image[:, : sample.size[0], : sample.size[1]])
        for sample, image in zip(samples, images, strict=True)
    ]
    return DetectionBatch(images, views)


def detection_loader(
    split: CocoSplit, recipe: DetectionRecipe, *, masks: bool, seed: int, rank: int,
    world_size: int, workers: int,
) -> Loader[DetectionBatch]:  # fmt: skip
    """Return the micro-batches of a detector, landscapes beside landscapes; `masks` or not.

    Raises:
        UserError: `world_size` processes cannot share a global batch equally.
    """
    height, width = split.images.sizes[split.trainable].T
    sampler = MicroBatchSampler(
        len(split.trainable),
        recipe.global_batch,
        recipe.device_batch,
        rank,
        world_size,
        groups=height > width,
    )
    return Loader(_TrainReader(split, recipe, seed, masks), sampler, seed, workers)


class _TrainReader(AugmentingReader):
    def __init__(self, split: CocoSplit, recipe: DetectionRecipe, seed: int, masks: bool) -> None:
        super().__init__(len(split.trainable), recipe, seed)
        self._split, self._masks = split, masks
        self._augment = DetectionTrainTransform(recipe.augment)

    def _path(self, index: int) -> Path:
        return self._split.images[int(self._split.trainable[index])].path

    def _read(self, index: int) -> tuple[Any, ...]:
        image = int(self._split.trainable[index])
        annotation = self._split.annotation(image)
        masks = self._split.masks(image) if self._masks else None
        return self._split.load_image(image), annotation.boxes, annotation.labels, masks

    def _collate(self, samples: list[DetectionSample]) -> DetectionBatch:
        return _batch(pad([sample.image for sample in samples]), samples)


def pad(images: Sequence[Tensor]) -> Tensor:
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
    reader = _EvalReader(split, DetectionEvalTransform(recipe.evaluation))
    yield from zip(own, read_in_order(reader, own, workers), strict=True)


class _EvalReader(Dataset[Any]):
    def __init__(self, split: CocoSplit, transform: DetectionEvalTransform) -> None:
        self._split, self._transform = split, transform

    @return_data_errors
    def __getitem__(self, index: int) -> DetectionInput:
        with every_image_required():
            image = self._split.load_image(index)
        return self._transform(image)
