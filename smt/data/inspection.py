"""What the annotations of a data set say, and whether they are of its images."""

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from smt.data import instances, label_maps, scan
from smt.data.instances import Instances
from smt.data.scan import SplitScan, Wrong
from smt.errors import first_line
from smt.spec import Dataset

S = TypeVar("S")
T = TypeVar("T")

_THREADS = 16
"""Files that are looked at side by side, for a disk on the network answers late."""


@dataclass(frozen=True)
class InspectedSplit:
    """What was counted in a split."""

    per_class: tuple[int, ...]
    """Images of each class, or that show it."""
    facts: dict[str, int] = field(default_factory=dict)
    """Of COCO: objects that are trained on, crowds, left_out (without an area in the image),
    and empty_images (without any annotation). Of ADE20K: blank_maps, which show no class."""


@dataclass(frozen=True)
class Inspected:
    """What the annotations of a data set say."""

    classes: tuple[str, ...]
    splits: dict[str, InspectedSplit]


def inspect(dataset: Dataset, root: Path, scans: Mapping[str, SplitScan]) -> Inspected:
    """Return the classes of a data set and what each split holds, once all of it fits.

    Raises:
        Wrong: one line with the file and the entry that is wrong.
    """
    if dataset.layout == "coco":
        return _inspect_coco(dataset, root, scans)
    if dataset.layout == "ade20k":
        return _inspect_ade20k(dataset, root, scans)
    splits = {split: InspectedSplit(found.files) for split, found in scans.items()}
    return Inspected(scans["train"].classes, splits)


def _inspect_coco(dataset: Dataset, root: Path, splits: Iterable[str]) -> Inspected:
    found = {split: _instances(root, split) for split in splits}
    train = found["train"]
    for each in found.values():
        if len(each.classes) != dataset.classes:
            raise Wrong(
                f"{each.path} has {len(each.classes)} categories, expected {dataset.classes}"
            )
        if (each.category_ids, each.classes) != (train.category_ids, train.classes):
            raise Wrong(f"{each.path} has other categories than {train.path}; valid: the same")
    for split, each in found.items():
        _require_images(root / scan.image_folder("coco", split), each)
    _require_trainable(dataset, train)
    return Inspected(
        train.classes, {split: _count_instances(each) for split, each in found.items()}
    )


def _instances(root: Path, split: str) -> Instances:
    path = root / scan.annotation_file(split)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            with memoryview(text) as content:
                return instances.read(path, content)
    except OSError as error:
        raise Wrong(f"{path} cannot be read ({error.strerror})") from None


def _require_images(folder: Path, found: Instances) -> None:
    """Refuse images without annotations, annotations without images, and images of other sizes."""
    there, named = set(scan.image_names(folder)), found.file_names.tolist()
    if absent := set(named) - there:
        first = found.image_ids[named.index(min(absent))]
        raise Wrong(
            f"{folder}/{min(absent)} is missing, but {found.path} has it as image {first} "
            f"({len(absent)} such)"
        )
    if extra := there - set(named):
        raise Wrong(
            f"{folder}/{min(extra)} is no image of {found.path} ({len(extra)} such); valid: "
            "images that it lists"
        )
    with _side_by_side(image_size, [folder / name for name in named]) as sizes:
        for id_, name, size, said in zip(
            found.image_ids, named, sizes, found.sizes.tolist(), strict=True
        ):
            if list(size) != said:
                raise Wrong(
                    f"{folder}/{name} is {size[0]} x {size[1]} pixels (height x width), but "
                    f"{found.path} says {said[0]} x {said[1]} of image {id_}"
                )


def _count_instances(found: Instances) -> InspectedSplit:
    objects, crowds = int(found.is_usable.sum()), int(found.is_crowd.sum())
    shown = np.unique(np.stack([found.image, found.labels])[:, found.is_usable], axis=1)[1]
    return InspectedSplit(
        per_class=tuple(np.bincount(shown, minlength=len(found.classes)).tolist()),
        facts={
            "objects": objects,
            "crowds": crowds,
            "left_out": len(found.labels) - objects - crowds,
            "empty_images": int((np.diff(found.first) == 0).sum()),
        },
    )


def _require_trainable(dataset: Dataset, train: Instances) -> None:
    """Refuse another number than params count an epoch's steps by."""
    if (found := int(train.is_trainable().sum())) != dataset.trained_images:
        raise Wrong(
            f"{train.path} has {found} images that show an object and are trained on, "
            f"{dataset.trained_images} expected; set images_with_objects to what is true of it"
        )


def _inspect_ade20k(dataset: Dataset, root: Path, scans: Mapping[str, SplitScan]) -> Inspected:
    classes = label_maps.class_names(root, dataset.classes)
    splits = {}
    for split in scans:
        pairs = label_maps.pairs(root, split)
        with _side_by_side(partial(_shown, dataset.classes), pairs) as shown:
            rows = np.array(list(shown))
        blank = int((~rows.any(1)).sum())
        splits[split] = InspectedSplit(tuple(rows.sum(0).tolist()), {"blank_maps": blank})
    return Inspected(classes, splits)


def _shown(classes: int, pair: label_maps.Pair) -> np.ndarray:
    return label_maps.shown(label_maps.read(pair, classes), classes)


@contextmanager
def _side_by_side(look: Callable[[S], T], at: list[S]) -> Iterator[Iterator[T]]:
    """Give what `look` gives of each file, in order; its threads end with the body."""
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            yield pool.map(look, at)
        finally:
            pool.shutdown(cancel_futures=True)


def image_size(path: Path) -> tuple[int, int]:
    """Return the height and width that an image file says of itself; its pixels are not read.

    Raises:
        Wrong: it is no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:
        raise Wrong(f"{path} is no image ({first_line(error)})") from None
