"""The images that pictures are made of: files of a user, or some of the data set of a run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smt.config.project import Project
from smt.config.recipes import ClassificationRecipe
from smt.data.imagenet import ImageFolder
from smt.data.transforms.classification_eval import EvalTransform
from smt.data.transforms.image import Normalise
from smt.datasets import manifest
from smt.datasets.decoding import EncodedImage, decode
from smt.errors import DataError
from smt.runs.paths import Layout

IMAGES = 16
"""Of a data set, that receptive fields are averaged over."""
SHOWN = 4
"""Images that have a row of their own in a picture; the first ones."""


@dataclass(frozen=True)
class Inputs:
    """Images as a network sees them in evaluation."""

    pixels: Tensor
    """(B, 3, R, R) uint8."""
    names: tuple[str, ...]
    classes: tuple[str, ...] = ()
    """Names of the classes of the data set, by number; empty where they are not known."""

    @property
    def normalised(self) -> Tensor:
        """Return (B, 3, R, R) float32."""
        return Normalise()(self.pixels)

    def class_name(self, label: int) -> str:
        """Return the name of a class, or its number where names are not known."""
        return f"class {self.classes[label] if self.classes else label}"


def from_files(paths: Sequence[Path], recipe: ClassificationRecipe) -> Inputs:
    """Return image files as the recipe evaluates them.

    Raises:
        DataError: a file is missing or no image.
    """
    try:
        return Inputs(_pixels(paths, recipe), tuple(path.name for path in paths))
    except DataError as error:
        raise DataError(f"{error}; give files of whole images, such as JPEG or PNG") from None


def from_data(project: Project, layout: Layout, recipe: ClassificationRecipe) -> Inputs:
    """Return images of the recipe's data set, from all over its validation split.

    Of its training split, where it has no other. The same ones each time; the first `SHOWN` are
    from all over the split as well.

    Raises:
        DataError: the data set or its manifest is missing or damaged.
    """
    known = manifest.read_current(project, layout, recipe.dataset)
    dataset = project.datasets[recipe.dataset]
    split = "val" if dataset.val_images else "train"
    folder = ImageFolder(layout.dataset_root(dataset), split, known)
    samples = [folder.samples[index] for index in spread(len(folder))]
    names = tuple(f"class {folder.classes[label]}" for _, label in samples)
    return Inputs(_pixels((image for image, _ in samples), recipe), names, folder.classes)


def spread(images: int) -> list[int]:
    """Return the numbers of `IMAGES` of so many images, evenly spaced, the shown ones in front."""
    count = min(IMAGES, images)
    numbers = [images * (2 * part + 1) // (2 * count) for part in range(count)]
    stride = max(count // SHOWN, 1)
    shown = numbers[::stride][:SHOWN]
    return shown + [number for number in numbers if number not in shown]


def _pixels(images: Iterable[Path | EncodedImage], recipe: ClassificationRecipe) -> Tensor:
    transform = EvalTransform(recipe)
    arrays = [np.array(transform(decode(image))) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
