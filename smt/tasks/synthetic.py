"""An experiment's network, loss and recipe on synthetic micro-batches: steps without data."""

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn

from smt.config.heads import TwoStage
from smt.config.project import Project
from smt.config.recipes import (
    ClassificationRecipe,
    DetectionRecipe,
    Recipe,
    SegmentationRecipe,
)
from smt.data.transforms.image import padded_size
from smt.detection.structures import DetectionModel, Size, Target
from smt.engine import optim
from smt.engine.protocol import MicroBatch, never
from smt.models.smt import set_recompute
from smt.segmentation.inference import probabilities
from smt.segmentation.upernet import UPerNet
from smt.tasks.classify import Classification
from smt.tasks.downstream import Downstream
from smt.tasks.network import network

COCO_SIZE = (800, 1333)
"""Height and width that most of COCO's images have where their shorter side is 800 pixels."""

OBJECTS, MOST_OBJECTS = 20, 100
"""In each image of a detector, and in those of its largest batch (assumed): COCO's training images
have 7 on average."""


class Synthetic:
    """The task of an experiment on noise: see `smt.engine.protocol.Task`.

    Args:
        project: Params at some scale.
        experiment: Whose network, loss and recipe to take.
        device: Where to put the network and its batches.
        images: In a micro-batch, in place of the recipe's `device_batch`.
        size: Of images: the recipe's resolution or crop where it has one, else `COCO_SIZE`.
        largest: Whether batches are the largest that training and evaluation can come upon: of a
            detector, landscapes beside portraits (see `largest_sizes`) with `MOST_OBJECTS` each;
            of a segmenter, an image at the largest factor of the multi-scale test.
        changes: Keys of the recipe and what they are here, such as precision.
    """

    headline = ""
    accumulation_steps = 1
    steps_per_epoch = 1_000

    def __init__(
        self, project: Project, experiment: str, device: torch.device, *,
        images: int | None = None, size: Size | None = None, largest: bool = False, **changes: Any,
    ) -> None:  # fmt: skip
        entry = project.experiments[experiment]
        self.recipe: Recipe = project.recipe_of(experiment).model_copy(update=changes)
        self.images = images or self.recipe.device_batch
        self.largest = largest
        self.sizes = self._sizes(size)
        self.classes = project.datasets[self.recipe.dataset].classes
        self._device = device
        self._masks = entry.head is not None and isinstance(project.heads[entry.head], TwoStage)
        self.model = network(project, experiment, classes=self.classes)
        set_recompute(self.model, self.recipe.recompute)
        if isinstance(self.recipe, ClassificationRecipe):
            self.model.to(memory_format=torch.channels_last)
        self._move()
        self.loss: Callable[[nn.Module, MicroBatch], torch.Tensor] = (
            Classification.loss
            if isinstance(self.recipe, ClassificationRecipe)
            else Downstream.loss
        )

    def _move(self) -> None:
        self.model.to(self._device)

    def _sizes(self, size: Size | None) -> list[Size]:
        """Return the size of each image of a micro-batch."""
        if size is None and self.largest and isinstance(self.recipe, DetectionRecipe):
            return list(islice(cycle(largest_sizes(self.recipe)), self.images))
        return [size or _size(self.recipe)] * self.images

    @property
    def canvas(self) -> Size:
        """Height and width of a micro-batch, which holds each of its images."""
        height, width = (max(sides) for sides in zip(*self.sizes, strict=True))
        if isinstance(self.recipe, DetectionRecipe):
            return padded_size((height, width))
        return height, width

    def micro_batches(self, epoch: int = 0, start_step: int = 0) -> Iterator[MicroBatch]:
        """Yield micro-batches without an end, each of other noise, on the device."""
        step = start_step
        while True:
            yield MicroBatch(self._inputs(), self.images, (epoch, step, 0))
            step += 1

    def _inputs(self) -> tuple[Any, ...]:
        if isinstance(self.recipe, ClassificationRecipe):
            images = self._noise(*self.canvas).contiguous(memory_format=torch.channels_last)
            return images, torch.rand(self.images, self.classes).softmax(1).to(self._device)
        if isinstance(self.recipe, SegmentationRecipe):
            labels = torch.randint(self.classes, (self.images, *self.canvas))
            return self._noise(*self.canvas), labels.to(self._device)
        return self._noise(*self.canvas), [self._target(size) for size in self.sizes]

    def _noise(self, height: int, width: int, images: int | None = None) -> torch.Tensor:
        return torch.randn(images or self.images, 3, height, width).to(self._device)

    def _target(self, size: Size) -> Target:
        """Return objects of all sizes, with masks that fill their boxes."""
        height, width = size
        objects = MOST_OBJECTS if self.largest else OBJECTS
        extent = torch.tensor([width, height])
        sides = extent * 2 ** (-5 * torch.rand(objects, 2))  # a 32nd of the image, to all of it
        first = (extent - sides) * torch.rand(objects, 2)
        boxes = torch.cat([first, first + sides], dim=1)
        masks = None
        if self._masks:
            masks = torch.zeros(objects, height, width, dtype=torch.bool)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
                mask[y1 : y2 + 1, x1 : x2 + 1] = True
            masks = masks.to(self._device)
        labels = torch.randint(self.classes, (objects,))
        return Target(boxes.to(self._device), labels.to(self._device), size, masks)

    @torch.inference_mode()
    def predict(self) -> Any:
        """Return what the network says of a batch in evaluation mode, in the recipe's precision."""
        self.model.eval()
        try:
            with optim.autocast(self.recipe, self._device):
                match self.model:
                    case DetectionModel() as detector:
                        return detector.predict(self._inputs()[0], self.sizes)
                    case UPerNet() as segmenter if self.largest:
                        size = _largest_evaluated(self.recipe)
                        return probabilities(segmenter, self._noise(*size, images=1), size)
                    case UPerNet() as segmenter:
                        return segmenter.logits(self._inputs()[0])
                    case classifier:
                        return classifier(self._inputs()[0])
        finally:
            self.model.train()

    def evaluate(
        self, interrupted: Callable[[], bool] = never, *, final: bool = True
    ) -> dict[str, float]:
        """Return nothing: noise has no classes."""
        return {}


def _size(recipe: Recipe) -> Size:
    if isinstance(recipe, ClassificationRecipe):
        return recipe.resolution, recipe.resolution
    if isinstance(recipe, SegmentationRecipe):
        return recipe.augment.crop, recipe.augment.crop
    return COCO_SIZE


def largest_sizes(recipe: DetectionRecipe) -> tuple[Size, Size]:
    """Return the largest landscape and the largest portrait that a detector is trained on.

    They can share a micro-batch, which is padded to hold both: images of one orientation come
    together (`smt.data.sampler.grouped_order`) but for what is left of both, once an epoch, and a
    random crop can make a portrait of a landscape.
    """
    rescales = [policy.last for policy in recipe.augment.policies]
    long = max(rescale.long for rescale in rescales)
    short = min(long, max(max(rescale.short) for rescale in rescales))
    return (short, long), (long, short)


def _largest_evaluated(recipe: Recipe) -> Size:
    """Return the size of the largest image that a segmenter is evaluated on."""
    assert isinstance(recipe, SegmentationRecipe)
    rescale, factor = recipe.evaluation.rescale, max(1.0, *recipe.evaluation.factors)
    return round(rescale.short[0] * factor), round(rescale.long * factor)
