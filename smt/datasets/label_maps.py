"""ADE20K's label maps: PNG files of one channel, in which 0 is no class and 1 the first class."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from smt.datasets import scan
from smt.datasets.decoding import upright_size
from smt.datasets.scan import InvalidDataset
from smt.errors import first_line

NO_CLASS = 255
"""Label of pixels that take no part in losses and metrics, once the others count from 0."""

CLASS_NAMES = "objectInfo150.txt"
"""File below the root that may name the classes: a table with tabs and columns `Idx` and `Name`."""


class Pair(NamedTuple):
    """An image and its label map."""

    image: Path
    map: Path


def map_name(image: str) -> str:
    """Return the name of an image's map."""
    return f"{Path(image).stem}.png"


def pairs(root: Path, split: str) -> list[Pair]:
    """Return the images of a split with their maps, sorted by name.

    Raises:
        InvalidDataset: an image without a map, a map without an image, or two images of one map.
    """
    images, maps = root / scan.image_folder("ade20k", split), root / scan.map_folder(split)
    names, there = scan.image_names(images), set(scan.image_names(maps))
    image_of: dict[str, str] = {}
    for name in names:
        wanted = map_name(name)
        if wanted in image_of:
            raise InvalidDataset(
                f"{images}/{name} and {image_of[wanted]} have one map, {maps}/{wanted}"
            )
        image_of[wanted] = name
    if absent := image_of.keys() - there:
        alike = [name for name in there if name.lower() == min(absent).lower()]
        hint = f"; {alike[0]} is another name" if alike else ""
        raise InvalidDataset(
            f"{maps}/{min(absent)} is missing, the map of {images}/{image_of[min(absent)]} "
            f"({len(absent)} such{hint})"
        )
    if extra := there - image_of.keys():
        raise InvalidDataset(f"{maps}/{min(extra)} has no image in {images} ({len(extra)} such)")
    return [Pair(images / name, maps / map_name(name)) for name in names]


def read(pair: Pair, classes: int) -> np.ndarray:
    """Return a label map (H, W) uint8 in which classes count from 0, and 255 is no class.

    Raises:
        InvalidDataset: it is no PNG file of one channel of bytes, is not of its image's size, or
            has a label above `classes`.
    """
    size = upright_size(pair.image)
    try:
        with Image.open(pair.map) as found:
            _require_labels(pair.map, found)
            labels = np.asarray(found)
    except InvalidDataset:
        raise
    except Exception as error:
        # Decoders of damaged files raise nearly anything.
        raise InvalidDataset(f"{pair.map} cannot be decoded ({first_line(error)})") from None
    if labels.shape != size:
        raise InvalidDataset(
            f"{pair.map} is {labels.shape[0]} x {labels.shape[1]} pixels (height x width), but "
            f"its image {pair.image} {size[0]} x {size[1]}"
        )
    if (highest := labels.max(initial=0)) > classes:
        raise InvalidDataset(
            f"{pair.map} has label {highest}; valid: 0 for no class, and 1 to {classes}"
        )
    # In uint8, 0 - 1 is 255.
    reduced: np.ndarray = labels - np.uint8(1)
    return reduced


def _require_labels(path: Path, found: ImageFile) -> None:
    # The values of a palette's pixels are labels whatever its colours; grey of fewer bits than 8
    # would be scaled to 8 when it is read.
    grey = found.mode == "L" and found.tile and found.tile[0][3] == "L"
    if found.format != "PNG" or not (grey or found.mode == "P"):
        raise InvalidDataset(
            f"{path} is a {found.format} of mode {found.mode}; valid: PNG with one channel of 8 "
            "bits, or a palette, whose values are the labels"
        )


def shown(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return (classes,) bool, which classes a map (H, W) of `read` shows."""
    return np.bincount(labels.ravel(), minlength=classes)[:classes] > 0


def class_names(root: Path, classes: int) -> tuple[str, ...]:
    """Return the names of the classes: those of the data set's table, or class_001, class_002, ...

    Raises:
        InvalidDataset: the table is not of `classes` classes, in order.
    """
    path = root / CLASS_NAMES
    if not path.exists():
        return tuple(f"class_{label:03d}" for label in range(1, classes + 1))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        found = [(row["Idx"].strip(), row["Name"].strip()) for row in rows]
    except (OSError, UnicodeDecodeError, KeyError, AttributeError, csv.Error):
        raise InvalidDataset(f"{path} is no table with tabs and the columns Idx and Name") from None
    numbers, names = [idx for idx, _ in found], tuple(name for _, name in found)
    if numbers != [str(label) for label in range(1, classes + 1)] or len({*names}) < classes:
        raise InvalidDataset(f"{path} has {len(rows)} classes; valid: 1 to {classes}, a name each")
    return names
