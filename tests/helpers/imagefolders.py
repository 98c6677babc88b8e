"""Small data sets in ImageNet's layout."""

from pathlib import Path

import numpy as np
from PIL import Image

from smt.config.datasets import Dataset
from smt.config.project import Project
from smt.config.recipes import ClassificationRecipe
from smt.data.imagenet import ImageFolder
from smt.datasets import manifest, manifest_writer
from smt.runs.paths import Layout
from tests.helpers.params import project_at


def write_images(folder: Path, classes: int, per_class: int, seed: int = 0) -> None:
    """Write JPEG files of 44 x 36 pixels of noise in `folder/c0`, `folder/c1`, ..."""
    generator = np.random.default_rng(seed)
    for label in range(classes):
        (folder / f"c{label}").mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(0, 256, (36, 44, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"c{label}" / f"{number:03d}.JPEG")


def project_of(root: Path, classes: int, train: int, val: int = 0) -> Project:
    """Return the demo's project with one data set, `tiny`."""
    dataset = Dataset(
        title="tiny", root=str(root), classes=classes, train_images=train, val_images=val,
        source="counted", generator=None,
    )  # fmt: skip
    return project_at("demo").model_copy(update={"datasets": {"tiny": dataset}})


def open_folder(root: Path, split: str, classes: int, train: int, val: int = 0) -> ImageFolder:
    """Write the manifest of the data set in `root`, and return a split."""
    layout = Layout("demo", results=root.parent / "results", data=root.parent)
    manifest_writer.write(project_of(root, classes, train, val), layout, "tiny")
    return ImageFolder(root, split, manifest.read(layout, "tiny"))


def recipe_of(**changes: object) -> ClassificationRecipe:
    """Return the paper's recipe for 32 pixels and global batches of 16 in micro-batches of 4."""
    recipe = project_at("paper").recipes["imagenet1k"]
    assert isinstance(recipe, ClassificationRecipe)
    small = {"resolution": 32, "global_batch": 16, "device_batch": 4}
    return recipe.model_copy(update={**small, **changes})
