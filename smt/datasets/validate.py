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
class SplitSummary:
    """What was counted in a split."""

    per_class: tuple[int, ...]
    """Images of each class, or that show it."""
    facts: dict[str, int] = field(default_factory=dict)
    """Of COCO: objects that are trained on, and among them those without_mask; what is not:
    crowds, ignored, and without_area in the image; and empty_images, without any annotation. Of
    ADE20K: blank_maps, which show no class."""


@dataclass(frozen=True)
class DatasetSummary:
    """What the annotations of a data set say."""

    classes: tuple[str, ...]
    splits: dict[str, SplitSummary]


def validate(dataset: Dataset, root: Path, scans: Mapping[str, SplitScan]) -> DatasetSummary:
    """Return the classes of a data set and what each split holds, once all of it fits.

    Raises:
        InvalidDataset: one line with the file and the entry that is wrong.
    """
    if dataset.layout == "coco":
        return _validate_coco(dataset, root, scans)
    if dataset.layout == "ade20k":
        return _validate_ade20k(dataset, root, scans)
    splits = {split: SplitSummary(split_scan.files) for split, split_scan in scans.items()}
    return DatasetSummary(scans["train"].classes, splits)


def _validate_coco(dataset: Dataset, root: Path, splits: Iterable[str]) -> DatasetSummary:
    instances = {split: _instances(root, split) for split in splits}
    train = instances["train"]
    for annotations in instances.values():
        if len(annotations.classes) != dataset.classes:
            raise InvalidDataset(
                f"{annotations.path} has {len(annotations.classes)} categories, expected "
                f"{dataset.classes}"
            )
        if (annotations.category_ids, annotations.classes) != (train.category_ids, train.classes):
            raise InvalidDataset(
                f"{annotations.path} has other categories than {train.path}; valid: the same"
            )
    for split, annotations in instances.items():
        _require_objects(annotations)
        _require_images(root / scan.image_folder("coco", split), annotations)
    _require_trainable(dataset, train)
    return DatasetSummary(
        train.classes,
        {split: _count_instances(annotations) for split, annotations in instances.items()},
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


def _require_images(folder: Path, instances: Instances) -> None:
    """Refuse images without annotations, annotations without images, and images of other sizes."""
    present, listed = set(scan.image_names(folder)), instances.file_names.tolist()
    if absent := set(listed) - present:
        first = instances.image_ids[listed.index(min(absent))]
        is_there = (folder / min(absent)).exists()
        state = f"has none of the names {', '.join(scan.SUFFIXES)}" if is_there else "is missing"
        raise InvalidDataset(
            f"{folder}/{min(absent)} {state}, but {instances.path} has it as image {first} "
            f"({len(absent)} such)"
        )
    if extra := present - set(listed):
        raise InvalidDataset(
            f"{folder}/{min(extra)} is no image of {instances.path} ({len(extra)} such); valid: "
            "images that it lists"
        )
    with _concurrently(upright_size, [folder / name for name in listed]) as sizes:
        for id_, name, size, annotated in zip(
            instances.image_ids, listed, sizes, instances.sizes.tolist(), strict=True
        ):
            if list(size) != annotated:
                raise InvalidDataset(
                    f"{folder}/{name} is {size[0]} x {size[1]} pixels (height x width), but "
                    f"{instances.path} says {annotated[0]} x {annotated[1]} of image {id_}"
                )


def _require_objects(instances: Instances) -> None:
    """Refuse a split in which there is nothing to learn or to find, and boxes in other units."""
    is_object = ~instances.is_crowd
    corners = instances.boxes[is_object, :2] + instances.boxes[is_object, 2:]
    if len(corners) and np.nanmax(corners) <= 1:
        raise InvalidDataset(
            f"{instances.path}: no box reaches beyond 1, as in fractions of the image; valid: "
            "pixels, [x, y, width, height]"
        )
    if not instances.is_usable.any():
        reasons = _left_out(instances)
        listed = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in reasons.items())
        raise InvalidDataset(
            f"{instances.path} has no usable object: of {len(instances.labels)} annotations "
            f"{listed}; valid: some that are no crowd, with a box of a pixel at least inside the "
            "image"
        )


def _left_out(instances: Instances) -> dict[str, int]:
    """Return how many annotations are not trained on, by reason."""
    reasons = {
        "crowds": instances.is_crowd,
        "ignored": instances.is_ignored & ~instances.is_crowd,
        "without_area": ~(instances.is_usable | instances.is_ignored | instances.is_crowd),
    }
    return {name: int(which.sum()) for name, which in reasons.items()}


def _count_instances(instances: Instances) -> SplitSummary:
    shown = np.unique(
        np.stack([instances.image, instances.labels])[:, instances.is_usable], axis=1
    )[1]
    return SplitSummary(
        per_class=tuple(np.bincount(shown, minlength=len(instances.classes)).tolist()),
        facts={
            "objects": int(instances.is_usable.sum()),
            "without_mask": int((instances.is_usable & ~instances.has_mask).sum()),
            **_left_out(instances),
            "empty_images": int((np.diff(instances.offsets) == 0).sum()),
        },
    )


def _require_trainable(dataset: Dataset, train: Instances) -> None:
    """Refuse another number than params count an epoch's steps by."""
    if (count := int(train.is_trainable().sum())) != dataset.trained_images:
        raise InvalidDataset(
            f"{train.path} has {count} images that show an object and are trained on, "
            f"{dataset.trained_images} expected; set images_with_objects to what is true of it"
        )


def _validate_ade20k(
    dataset: Dataset, root: Path, scans: Mapping[str, SplitScan]
) -> DatasetSummary:
    classes = label_maps.class_names(root, dataset.classes)
    splits = {}
    for split in scans:
        pairs = label_maps.pairs(root, split)
        with _concurrently(partial(_present_classes, dataset.classes), pairs) as shown:
            rows = np.array(list(shown))
        blank = int((~rows.any(1)).sum())
        if blank == len(rows):
            raise InvalidDataset(
                f"{root / scan.map_folder(split)}: no map has a pixel of a class, so there is "
                "nothing to learn or to measure; valid: labels from 1, 0 is no class"
            )
        splits[split] = SplitSummary(tuple(rows.sum(0).tolist()), {"blank_maps": blank})
    return DatasetSummary(classes, splits)


def _present_classes(classes: int, pair: label_maps.Pair) -> np.ndarray:
    return label_maps.present_classes(label_maps.read(pair, classes), classes)


@contextmanager
def _concurrently(function: Callable[[S], T], items: list[S]) -> Iterator[Iterator[T]]:
    """Give what `function` gives of each file, in order; its threads end with the body."""
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            yield pool.map(function, items)
        finally:
            pool.shutdown(cancel_futures=True)
