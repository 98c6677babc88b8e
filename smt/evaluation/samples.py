"""A picture of some validation images: above as they are annotated, below as they are predicted."""

import colorsys
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from smt.data.ade20k import ADE20KSplit
from smt.data.coco import CocoSplit
from smt.datasets.label_maps import NO_CLASS
from smt.datasets.masks import draw as drawn_masks
from smt.evaluation.predictions import ImageResult
from smt.runs.atomic import replacing

SHOWN = 6
"""Images of a picture."""
LEAST_SCORE = 0.3
"""Of a predicted object that is drawn."""
TILE = 256
"""Pixels of the longer side of an image in the picture, whatever it has itself."""
NAMED = 0.02
"""Part of an image from which on a class of a label map has its name in it."""

_CAPTIONS = ("annotated", "predicted")
_STRIP = 24
"""Height of a caption."""
_GAP = 6
_OPACITY = 0.5
_FONT_SIZE = 13
_LINE = _FONT_SIZE + 3
_QUALITY = 85

_Box = tuple[float, ...]
_Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Thing:
    """An object as it is drawn."""

    box: _Box
    """x1 y1 x2 y2 in pixels of the image."""
    label: int
    text: str
    """Its class, and how sure the detector is."""
    mask: np.ndarray | None = None
    """(H, W) bool."""


def colour(label: int) -> _Colour:
    """Return the colour of a class, as far as can be from those of its neighbours."""
    golden = 0.618034
    lightness = (0.5, 0.64, 0.4)[label % 3]
    rgb = colorsys.hls_to_rgb(label * golden % 1, lightness, 0.85)
    red, green, blue = (round(255 * each) for each in rgb)
    return red, green, blue


def chosen(images: int, shows: Callable[[int], bool]) -> list[int]:
    """Return the images to show, by number: the first with something in each of SHOWN stretches.

    The stretches are as long as one another, so that all of a split is looked at; whoever asks
    gets the same ones.
    """
    edges = [images * place // SHOWN for place in range(SHOWN + 1)]
    stretches = [range(*pair) for pair in pairwise(edges)]
    first = (next(filter(shows, stretch), None) for stretch in stretches)
    return [index for index in first if index is not None]


# --- detectors -------------------------------------------------------------------------------


def of_detections(split: CocoSplit, found: Iterable[ImageResult]) -> Image.Image:
    """Return the picture of a detector; masks are in it where the detector gives some."""
    results = {each.image_id: each for each in found}
    indices = chosen(len(split), lambda index: len(split.annotation(index).labels) > 0)
    annotated, predicted = [], []
    for index in indices:
        picture, result = split.picture(index), results[split.images[index].id]
        annotated.append(with_things(picture, _annotated(split, index, result.masks is not None)))
        predicted.append(with_things(picture, _predicted(split, result)))
    return sheet(annotated, predicted)


def _annotated(split: CocoSplit, index: int, with_masks: bool) -> list[Thing]:
    """Return an image's objects, the largest first, so that it does not hide others."""
    there = split.annotation(index)
    masks = split.masks(index) if with_masks else [None] * len(there.labels)
    things = [
        Thing(tuple(box), label, split.classes[label], mask)
        for box, label, mask in zip(there.boxes.tolist(), there.labels.tolist(), masks, strict=True)
    ]
    return sorted(things, key=lambda each: -_area(each.box))


def _area(box: _Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _predicted(split: CocoSplit, result: ImageResult) -> list[Thing]:
    """Return what is found in an image and sure enough, the surest last."""
    kept = [place for place, score in enumerate(result.scores) if score >= LEAST_SCORE][::-1]
    masks: Sequence[np.ndarray | None] = [None] * len(kept)
    if result.masks is not None:
        runs = [{"size": list(result.size), "counts": result.masks[place]} for place in kept]
        masks = list(drawn_masks(runs, *result.size))
    return [_thing(split, result, place, mask) for place, mask in zip(kept, masks, strict=True)]


def _thing(split: CocoSplit, result: ImageResult, place: int, mask: np.ndarray | None) -> Thing:
    x, y, width, height = result.boxes[place]
    label = split.category_ids.index(result.categories[place])
    text = f"{split.classes[label]} {result.scores[place]:.2f}"
    return Thing((x, y, x + width, y + height), label, text, mask)


def with_things(picture: Image.Image, things: Sequence[Thing]) -> Image.Image:
    """Return an image as a tile with objects in it, each over those before it."""
    tile = _tile(picture)
    for each in things:
        if each.mask is not None:
            _fill(tile, each.mask, colour(each.label))
    draw = ImageDraw.Draw(tile)
    scale = tile.width / picture.width, tile.height / picture.height
    scaled = [replace(each, box=_scaled(each.box, *scale)) for each in things]
    for each in scaled:
        draw.rectangle(each.box, outline=colour(each.label), width=2)
    for each in scaled:
        # Above the box, or in its top where the image ends.
        _name(draw, each.box[0], each.box[1] - _LINE, each.text, colour(each.label))
    return tile


def _scaled(box: _Box, x: float, y: float) -> _Box:
    """Return where a box lies in the tile, in whole pixels, the last ones inside of it."""
    left, top = round(box[0] * x), round(box[1] * y)
    return left, top, max(round(box[2] * x) - 1, left), max(round(box[3] * y) - 1, top)


def _fill(tile: Image.Image, mask: np.ndarray, with_colour: _Colour) -> None:
    opacity = Image.fromarray(np.where(mask, round(255 * _OPACITY), 0).astype(np.uint8))
    tile.paste(with_colour, mask=opacity.resize(tile.size, Image.Resampling.BILINEAR))


# --- segmenters ------------------------------------------------------------------------------


def shown_maps(split: ADE20KSplit) -> list[int]:
    """Return the images of a segmenter's picture, by number: they have more than one class."""

    def has_several(index: int) -> bool:
        return len(np.setdiff1d(split.label_map(index), [NO_CLASS])) > 1

    return chosen(len(split), has_several)


def of_label_maps(split: ADE20KSplit, predicted: Mapping[int, np.ndarray]) -> Image.Image:
    """Return the picture of a segmenter, with the images that `predicted` has a map (H, W) of."""
    pictures = {index: split.picture(index) for index in sorted(predicted)}
    names = split.classes
    return sheet(
        [with_labels(each, split.label_map(index), names) for index, each in pictures.items()],
        [with_labels(each, predicted[index], names) for index, each in pictures.items()],
    )


def with_labels(picture: Image.Image, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Return an image as a tile coloured by class; pixels without a class stay as they are."""
    tile = _tile(picture)
    seen = np.asarray(Image.fromarray(labels).resize(tile.size, Image.Resampling.NEAREST))
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(names)] = [colour(label) for label in range(len(names))]
    opacity = np.where(seen == NO_CLASS, 0, round(255 * _OPACITY)).astype(np.uint8)
    tile.paste(Image.fromarray(colours[seen]), mask=Image.fromarray(opacity))
    draw = ImageDraw.Draw(tile)
    counts = np.bincount(seen.ravel(), minlength=NO_CLASS)[:NO_CLASS]
    for label in np.argsort(-counts, kind="stable").tolist():
        if counts[label] >= NAMED * seen.size:
            x, y = _inside(seen == label)
            text = first_synonym(names[label])
            width = draw.textlength(text, _font())
            _name(draw, x - width / 2, y - _LINE / 2, text, colour(label))
    return tile


def first_synonym(name: str) -> str:
    """Return the first of the names of a class; ADE20K's tables have `;` or `,` between them."""
    return re.split("[;,]", name)[0]


def _inside(mask: np.ndarray) -> tuple[int, int]:
    """Return x and y of the pixel of a mask (H, W) bool that has most of the mask around it."""
    reach = max(round(mask.sum() ** 0.5 / 4), 1)
    padded = Image.fromarray(np.pad(mask, reach).astype(np.uint8) * 255)
    around = np.asarray(padded.filter(ImageFilter.BoxBlur(reach)))[reach:-reach, reach:-reach]
    y, x = np.unravel_index(np.where(mask, around, 0).argmax(), mask.shape)
    return int(x), int(y)


# --- the sheet -------------------------------------------------------------------------------


def sheet(annotated: Sequence[Image.Image], predicted: Sequence[Image.Image]) -> Image.Image:
    """Return two rows of tiles below their captions."""
    height = max((tile.height for tile in annotated), default=0)
    width = max(sum(tile.width + _GAP for tile in annotated) - _GAP, TILE)
    row = _STRIP + height + _GAP
    whole = Image.new("RGB", (width, 2 * row - _GAP), "white")
    draw = ImageDraw.Draw(whole)
    for top, caption, tiles in zip((0, row), _CAPTIONS, (annotated, predicted), strict=True):
        draw.text((2, top + _STRIP / 2), caption, "black", _font(), anchor="lm")
        left = 0
        for tile in tiles:
            whole.paste(tile, (left, top + _STRIP))
            left += tile.width + _GAP
    return whole


def write(path: Path, picture: Image.Image) -> None:
    """Write a picture as JPEG, whole or not at all: the same bytes for the same picture."""
    with replacing(path) as file:
        picture.save(file, "JPEG", quality=_QUALITY)


def _tile(picture: Image.Image) -> Image.Image:
    """Return an image at the size of a tile, which small ones are enlarged to."""
    scale = TILE / max(picture.size)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _name(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, on: _Colour) -> None:
    """Write a text on its class's colour, with its corner at x, y or where the tile has room."""
    width, height = draw.textlength(text, _font()) + 4, _LINE
    left = round(max(min(x, draw.im.size[0] - width), 0))
    top = round(max(min(y, draw.im.size[1] - height), 0))
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=on)
    brightness = np.dot(on, (0.299, 0.587, 0.114))
    ink = "black" if brightness > 120 else "white"
    draw.text((left + 2, top + height / 2), text, ink, _font(), anchor="lm")


@cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(_FONT_SIZE)
