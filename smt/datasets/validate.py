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

from smt.config.datasets import Dataset
from smt.datasets import coco_annotations, label_maps, scan
from smt.datasets.coco_annotations import Instances
from smt.datasets.decoding import upright_size
from smt.datasets.scan import InvalidDataset, SplitScan

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
    """Of COCO: objects that are trained on, and among them those without_mask; what is not:
    crowds, ignored, and without_area in the image; and empty_images, without any annotation. Of
    ADE20K: blank_maps, which show no class."""


@dataclass(frozen=True)
class Inspected:
    """What the annotations of a data set say."""

    classes: tuple[str, ...]
    splits: dict[str, InspectedSplit]


def inspect(dataset: Dataset, root: Path, scans: Mapping[str, SplitScan]) -> Inspected:
    """Return the classes of a data set and what each split holds, once all of it fits.

    Raises:
        InvalidDataset: one line with the file and the entry that is wrong.
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
            raise InvalidDataset(
                f"{each.path} has {len(each.classes)} categories, expected {dataset.classes}"
            )
        if (each.category_ids, each.classes) != (train.category_ids, train.classes):
            raise InvalidDataset(
                f"{each.path} has other categories than {train.path}; valid: the same"
            )
    for split, each in found.items():
        _require_objects(each)
        _require_images(root / scan.image_folder("coco", split), each)
    _require_trainable(dataset, train)
    return Inspected(
        train.classes, {split: _count_instances(each) for split, each in found.items()}
    )


def _instances(root: Path, split: str) -> Instances:
    path = root / scan.annotation_file(split)
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
            memoryview(text) as content,
        ):
            return coco_annotations.read(path, content)
    except OSError as error:
        raise InvalidDataset(f"{path} cannot be read ({error.strerror})") from None


def _require_images(folder: Path, found: Instances) -> None:
    """Refuse images without annotations, annotations without images, and images of other sizes."""
    there, named = set(scan.image_names(folder)), found.file_names.tolist()
    if absent := set(named) - there:
        first = found.image_ids[named.index(min(absent))]
        is_there = (folder / min(absent)).exists()
        state = f"has none of the names {', '.join(scan.SUFFIXES)}" if is_there else "is missing"
        raise InvalidDataset(
            f"{folder}/{min(absent)} {state}, but {found.path} has it as image {first} "
            f"({len(absent)} such)"
        )
    if extra := there - set(named):
        raise InvalidDataset(
            f"{folder}/{min(extra)} is no image of {found.path} ({len(extra)} such); valid: "
            "images that it lists"
        )
    with _side_by_side(upright_size, [folder / name for name in named]) as sizes:
        for id_, name, size, said in zip(
            found.image_ids, named, sizes, found.sizes.tolist(), strict=True
        ):
            if list(size) != said:
                raise InvalidDataset(
                    f"{folder}/{name} is {size[0]} x {size[1]} pixels (height x width), but "
                    f"{found.path} says {said[0]} x {said[1]} of image {id_}"
                )


def _require_objects(found: Instances) -> None:
    """Refuse a split in which there is nothing to learn or to find, and boxes in other units."""
    things = ~found.is_crowd
    corners = found.boxes[things, :2] + found.boxes[things, 2:]
    if len(corners) and np.nanmax(corners) <= 1:
        raise InvalidDataset(
            f"{found.path}: no box reaches beyond 1, as in fractions of the image; valid: pixels, "
            "[x, y, width, height]"
        )
    if not found.is_usable.any():
        reasons = _left_out(found)
        listed = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in reasons.items())
        raise InvalidDataset(
            f"{found.path} has no object of use: of {len(found.labels)} annotations {listed}; "
            "valid: some that are no crowd, with a box of a pixel at least inside the image"
        )


def _left_out(found: Instances) -> dict[str, int]:
    """Return how many annotations are not trained on, by reason."""
    reasons = {
        "crowds": found.is_crowd,
        "ignored": found.is_ignored & ~found.is_crowd,
        "without_area": ~(found.is_usable | found.is_ignored | found.is_crowd),
    }
    return {name: int(which.sum()) for name, which in reasons.items()}


def _count_instances(found: Instances) -> InspectedSplit:
    shown = np.unique(np.stack([found.image, found.labels])[:, found.is_usable], axis=1)[1]
    return InspectedSplit(
        per_class=tuple(np.bincount(shown, minlength=len(found.classes)).tolist()),
        facts={
            "objects": int(found.is_usable.sum()),
            "without_mask": int((found.is_usable & ~found.has_mask).sum()),
            **_left_out(found),
            "empty_images": int((np.diff(found.first) == 0).sum()),
        },
    )


def _require_trainable(dataset: Dataset, train: Instances) -> None:
    """Refuse another number than params count an epoch's steps by."""
    if (found := int(train.is_trainable().sum())) != dataset.trained_images:
        raise InvalidDataset(
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
        if blank == len(rows):
            raise InvalidDataset(
                f"{root / scan.map_folder(split)}: no map has a pixel of a class, so there is "
                "nothing to learn or to measure; valid: labels from 1, 0 is no class"
            )
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
