"""Demo scenes: handwritten digits on photographs, in COCO's form and in ADE20K's.

The digits are MNIST's, of the split's own, bright as the classifiers of the demo know them; the
photographs are those that scikit-image ships, darkened. A digit that comes later covers the
earlier, and what stays visible of each is its mask. A few scenes hold a crowd of small digits as
well, and a few hold none at all. Both forms are of the same scenes.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from smt.datasets import scan
from smt.datasets.demo.mask_encoding import polygons, run_lengths
from smt.datasets.label_maps import CLASS_NAMES

SIDE = 128
"""Pixels of a scene."""

_HEIGHTS = (28, 72)
"""Lowest and highest digit, in pixels."""
_MAX_DIGITS = 4
"""Digits of a scene."""
_MIN_VISIBLE = 0.6
"""Part of a digit that no other may cover."""
_CROWD = (10, 16)
"""Lowest and highest digit of a crowd, in pixels."""
_PERIOD = 40
"""One scene of so many is empty, and one has a crowd."""
_DARKENED = 0.4
"""What is left of a photograph's brightness."""
_BRIGHT = 128
"""Least value of each channel of a digit's colour, of 255."""
_CONTRAST = 40
"""Least difference of a digit's brightness and that of what it covers, of 255."""
_PLACEMENTS = 4
"""Random places that are tried for a digit."""

_PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel",
    "hubble_deep_field", "immunohistochemistry", "moon", "rocket", "stereo_motorcycle",
)  # fmt: skip

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CATEGORY_IDS = tuple(range(1, 20, 2))
"""With gaps between them, as COCO's have."""

_SPLITS = ("train", "val")
_INFO = '{"info":{"description":"scenes of MNIST digits"}'
_TABLE = "Idx\tName\n"
"""How the files of annotations begin."""

BACKGROUND = len(DIGITS) + 1
"""Label of a photograph without digits in ADE20K's form, where digits are 1 to 10."""


@dataclass(frozen=True)
class SceneObject:
    """A digit of a scene, or a crowd of the same digit."""

    digit: int
    mask: np.ndarray
    """(SIDE, SIDE) bool: what is visible of it."""
    is_crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """An image and its objects."""

    pixels: np.ndarray
    """(SIDE, SIDE, 3) uint8."""
    objects: tuple[SceneObject, ...]


def scene(split: str, number: int, digits: np.ndarray) -> Scene:
    """Return a scene of digits (10, n, 28, 28), uint8, white on black; always the same one."""
    # NumPy guarantees that the stream of RandomState never changes.
    rng = np.random.RandomState([128, _SPLITS.index(split), number])
    pixels = _background(rng)
    if number % _PERIOD == _PERIOD - 1:
        return Scene(pixels, ())
    objects: list[_PlacedDigit] = []
    if number % _PERIOD == _PERIOD // 2:
        objects.append(_crowd(rng, digits))
        _paint(rng, pixels, objects[0].mask)
    for _ in range(rng.randint(1, _MAX_DIGITS + 1)):
        new = _place_digit(rng, digits, objects)
        if new is not None:
            objects = [placed.occluded_by(new.mask) for placed in objects] + [new]
            _paint(rng, pixels, new.mask)
    return Scene(
        pixels, tuple(SceneObject(placed.digit, placed.mask, placed.is_crowd) for placed in objects)
    )


@dataclass(frozen=True)
class _PlacedDigit:
    """A digit and its place, as far as it is visible."""

    digit: int
    mask: np.ndarray
    whole: int
    """Pixels that it had before anything covered it."""
    is_crowd: bool = False

    def occluded_by(self, other: np.ndarray) -> "_PlacedDigit":
        return _PlacedDigit(self.digit, self.mask & ~other, self.whole, self.is_crowd)

    @property
    def is_visible(self) -> bool:
        return bool(self.mask.sum() >= _MIN_VISIBLE * self.whole)


def _place_digit(
    rng: np.random.RandomState, digits: np.ndarray, objects: list[_PlacedDigit]
) -> _PlacedDigit | None:
    """Return a digit where it covers least of the others, or None where too much in each place."""
    digit = int(rng.randint(10))
    image = digits[digit, rng.randint(digits.shape[1])]
    masks = [
        _random_position(rng, _ink(image, rng.randint(_HEIGHTS[0], _HEIGHTS[1] + 1)))
        for _ in range(_PLACEMENTS if objects else 1)
    ]
    placements = [
        mask for mask in masks if all(placed.occluded_by(mask).is_visible for placed in objects)
    ]
    if not placements:
        return None
    best = min(
        placements, key=lambda mask: sum(int((placed.mask & mask).sum()) for placed in objects)
    )
    return _PlacedDigit(digit, best, int(best.sum()))


def _crowd(rng: np.random.RandomState, digits: np.ndarray) -> _PlacedDigit:
    """Return a dozen small digits of the same class, side by side."""
    digit, cell = int(rng.randint(10)), _CROWD[1] + 1
    rows, columns = 3, 4
    group = np.zeros((rows * cell, columns * cell), bool)
    for row in range(rows):
        for column in range(columns):
            image = digits[digit, rng.randint(digits.shape[1])]
            ink = _ink(image, rng.randint(_CROWD[0], _CROWD[1] + 1), dilation=0)[:, :cell]
            top, left = (rng.randint(cell - side + 1) for side in ink.shape)
            group[row * cell + top :, column * cell + left :][: ink.shape[0], : ink.shape[1]] |= ink
    mask = _random_position(rng, group)
    return _PlacedDigit(digit, mask, int(mask.sum()), is_crowd=True)


def _ink(image: np.ndarray, height: int, dilation: int | None = None) -> np.ndarray:
    """Return the strokes of a digit (height, width) bool, cut to what they fill.

    They are thicker than written by a pixel on each side, and by two where the digit is large.
    """
    by = (1 if height < 48 else 2) if dilation is None else dilation
    strokes = image[np.ix_(*(np.flatnonzero((image >= 128).any(axis)) for axis in (1, 0)))]
    inner = height - 2 * by
    width = round(strokes.shape[1] * inner / strokes.shape[0])
    width = min(max(width, 2), SIDE - 2 * by)  # a digit may lie on its side
    large = Image.fromarray(strokes).resize((width, inner), Image.Resampling.BICUBIC)
    ink = np.pad(np.asarray(large) >= 128, by)
    return _dilate(ink, by)


def _dilate(mask: np.ndarray, by: int) -> np.ndarray:
    """Return a mask that reaches `by` pixels further."""
    if not by:
        return mask
    grown = Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * by + 1))
    return np.asarray(grown) > 0


def _random_position(rng: np.random.RandomState, ink: np.ndarray) -> np.ndarray:
    """Return the mask of a scene that has `ink` somewhere."""
    mask = np.zeros((SIDE, SIDE), bool)
    top, left = (rng.randint(SIDE - side + 1) for side in ink.shape)
    mask[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return mask


def _paint(rng: np.random.RandomState, pixels: np.ndarray, mask: np.ndarray) -> None:
    """Give a mask's pixels a colour that stands out; a little of what was there shines through."""
    brightness = np.array([0.299, 0.587, 0.114])
    below = (pixels[mask] @ brightness).mean()
    colour = rng.randint(_BRIGHT, 256, size=3)
    while abs(colour @ brightness - below) < _CONTRAST:
        colour = rng.randint(_BRIGHT, 256, size=3)
    pixels[mask] = (0.85 * colour + 0.15 * pixels[mask]).astype(np.uint8)


def _background(rng: np.random.RandomState) -> np.ndarray:
    """Return a part of a photograph (SIDE, SIDE, 3) uint8, darkened, one in four of them grey."""
    photograph = photographs()[rng.randint(len(_PHOTOGRAPHS))]
    side = rng.randint(SIDE, min(*photograph.size, 2 * SIDE) + 1)
    left, top = (rng.randint(length - side + 1) for length in photograph.size)
    part = photograph.crop((left, top, left + side, top + side))
    part = part.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if rng.randint(4) == 0:
        part = part.convert("L").convert("RGB")
    return (np.asarray(part) * _DARKENED).astype(np.uint8)


@cache
def photographs() -> tuple[Image.Image, ...]:
    """Return the photographs, as RGB."""
    from skimage import data

    arrays = (getattr(data, name)() for name in _PHOTOGRAPHS)
    # A pair of pictures for two eyes, and how far off each of its points is.
    first = (array[0] if isinstance(array, tuple) else array for array in arrays)
    return tuple(Image.fromarray(array).convert("RGB") for array in first)


def scenes(split: str, count: int, digits: np.ndarray) -> Iterator[tuple[str, Scene]]:
    """Yield name and content of each scene of a split."""
    for number in range(count):
        yield f"scene_{number:05d}", scene(split, number, digits)


def count_with_objects(count: int) -> int:
    """Return how many of the first `count` scenes are not empty."""
    return count - count // _PERIOD


_NAMES = re.compile(
    r"((train|val)2017|images/(training|validation))/scene_\d{5}\.jpg"
    r"|annotations/(training|validation)/scene_\d{5}\.png"
)


def is_scene_file(root: Path, name: str) -> bool:
    """Whether a file `name` below `root` is one of scenes, of whatever number of them."""
    if _NAMES.fullmatch(name):
        return True
    starts = {CLASS_NAMES: _TABLE, **{scan.annotation_file(split): _INFO for split in _SPLITS}}
    if name not in starts:
        return False
    with (root / name).open("rb") as file:
        return file.read(len(starts[name])) == starts[name].encode()


def write_coco(folder: Path, counts: dict[str, int], digits: dict[str, np.ndarray]) -> None:
    """Write as many scenes of each split in COCO's form."""
    for split, count in counts.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for name, content in scenes(split, count, digits[split]):
            file = f"{name}.jpg"
            _save(content, folder / scan.image_folder("coco", split) / file)
            image = len(images) + 1
            images.append({"id": image, "file_name": file, "height": SIDE, "width": SIDE})
            for object_ in content.objects:
                ids = {"id": len(annotations) + 1, "image_id": image}
                annotations.append({**ids, **_annotation(object_)})
        instances = {
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": id_, "name": name, "supercategory": "digit"}
                for id_, name in zip(CATEGORY_IDS, DIGITS, strict=True)
            ],
        }
        path = folder / scan.annotation_file(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{_INFO},{json.dumps(instances, separators=(',', ':'))[1:]}")


def _annotation(object_: SceneObject) -> dict[str, Any]:
    """Return what COCO says of an object: polygons, or runs if it has holes or is a crowd."""
    rows, columns = (np.flatnonzero(object_.mask.any(axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    outlines = None if object_.is_crowd else polygons(object_.mask)
    return {
        "category_id": CATEGORY_IDS[object_.digit],
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(object_.mask.sum()),
        "iscrowd": int(object_.is_crowd),
        "segmentation": outlines or {"size": [SIDE, SIDE], "counts": run_lengths(object_.mask)},
    }


def write_ade20k(folder: Path, counts: dict[str, int], digits: dict[str, np.ndarray]) -> None:
    """Write as many scenes of each split in ADE20K's form, and the table of classes."""
    for split, count in counts.items():
        maps = folder / scan.map_folder(split)
        maps.mkdir(parents=True, exist_ok=True)
        for name, content in scenes(split, count, digits[split]):
            _save(content, folder / scan.image_folder("ade20k", split) / f"{name}.jpg")
            Image.fromarray(label_map(content)).save(maps / f"{name}.png")
    rows = [f"{label}\t{name}\n" for label, name in enumerate((*DIGITS, "background"), 1)]
    (folder / CLASS_NAMES).write_text("".join((_TABLE, *rows)))


def label_map(content: Scene) -> np.ndarray:
    """Return the labels of a scene (SIDE, SIDE) uint8.

    Beside digits the photograph has no label: they are a tenth of the pixels, and a demo is too
    short to learn classes so rare. It is background where there are none.
    """
    if not content.objects:
        return np.full((SIDE, SIDE), BACKGROUND, np.uint8)
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for object_ in content.objects:
        labels[object_.mask] = object_.digit + 1
    return labels


def _save(content: Scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(content.pixels).save(path, "JPEG", quality=95, subsampling="4:4:4")
