"""A sheet of some validation images: annotations in the upper row, predictions in the lower."""

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
from smt.datasets.masks import rasterize
from smt.evaluation.predictions import ImageResult
from smt.runs.atomic import replacing

IMAGES = 6
"""Images of a sheet."""
MIN_SCORE = 0.3
"""Of a predicted object that is drawn."""
TILE = 256
"""Pixels of the longer side of an image in the sheet, whatever it has itself."""
MIN_NAMED_PART = 0.02
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
class Overlay:
    """An object to draw over an image."""

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
    red, green, blue = (round(255 * channel) for channel in rgb)
    return red, green, blue


def choose_images(images: int, shows: Callable[[int], bool]) -> list[int]:
    """Return the images of a sheet, by number: the first with a label in each stretch.

    The stretches are of equal length, so that the sheet covers the whole split, and every process
    gets the same images.
    """
    edges = [images * number // IMAGES for number in range(IMAGES + 1)]
    stretches = [range(*pair) for pair in pairwise(edges)]
    first = (next(filter(shows, stretch), None) for stretch in stretches)
    return [index for index in first if index is not None]


# --- detectors -------------------------------------------------------------------------------


def detection_sheet(split: CocoSplit, results: Iterable[ImageResult]) -> Image.Image:
    """Return the sheet of a detector, with masks where the detector predicts some."""
    result_of = {result.image_id: result for result in results}
    indices = choose_images(len(split), lambda index: len(split.annotation(index).labels) > 0)
    annotated, predicted = [], []
    for index in indices:
        image, result = split.load_image(index), result_of[split.images[index].id]
        annotated.append(draw_objects(image, _annotated(split, index, result.masks is not None)))
        predicted.append(draw_objects(image, _predicted(split, result)))
    return sheet(annotated, predicted)


def _annotated(split: CocoSplit, index: int, with_masks: bool) -> list[Overlay]:
    """Return an image's objects, the largest first, so that it does not hide others."""
    there = split.annotation(index)
    masks = split.masks(index) if with_masks else [None] * len(there.labels)
    objects = [
        Overlay(tuple(box), label, split.classes[label], mask)
        for box, label, mask in zip(there.boxes.tolist(), there.labels.tolist(), masks, strict=True)
    ]
    return sorted(objects, key=lambda overlay: -_area(overlay.box))


def _area(box: _Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _predicted(split: CocoSplit, result: ImageResult) -> list[Overlay]:
    """Return what is found in an image and sure enough, the surest last."""
    rows = [row for row, score in enumerate(result.scores) if score >= MIN_SCORE][::-1]
    masks: Sequence[np.ndarray | None] = [None] * len(rows)
    if result.masks is not None:
        runs = [{"size": list(result.size), "counts": result.masks[row]} for row in rows]
        masks = list(rasterize(runs, *result.size))
    return [_overlay(split, result, row, mask) for row, mask in zip(rows, masks, strict=True)]


def _overlay(split: CocoSplit, result: ImageResult, row: int, mask: np.ndarray | None) -> Overlay:
    x, y, width, height = result.boxes[row]
    label = split.category_ids.index(result.categories[row])
    text = f"{split.classes[label]} {result.scores[row]:.2f}"
    return Overlay((x, y, x + width, y + height), label, text, mask)


def draw_objects(image: Image.Image, objects: Sequence[Overlay]) -> Image.Image:
    """Return an image as a tile with objects in it, each over those before it."""
    tile = _tile(image)
    for overlay in objects:
        if overlay.mask is not None:
            _fill(tile, overlay.mask, colour(overlay.label))
    draw = ImageDraw.Draw(tile)
    scale = tile.width / image.width, tile.height / image.height
    scaled = [replace(overlay, box=_scaled(overlay.box, *scale)) for overlay in objects]
    for overlay in scaled:
        draw.rectangle(overlay.box, outline=colour(overlay.label), width=2)
    for overlay in scaled:
        # Above the box, or in its top where the image ends.
        _draw_label(
            draw, overlay.box[0], overlay.box[1] - _LINE, overlay.text, colour(overlay.label)
        )
    return tile


def _scaled(box: _Box, x: float, y: float) -> _Box:
    """Return where a box lies in the tile, in whole pixels, the last ones inside of it."""
    left, top = round(box[0] * x), round(box[1] * y)
    return left, top, max(round(box[2] * x) - 1, left), max(round(box[3] * y) - 1, top)


def _fill(tile: Image.Image, mask: np.ndarray, with_colour: _Colour) -> None:
    opacity = Image.fromarray(np.where(mask, round(255 * _OPACITY), 0).astype(np.uint8))
    tile.paste(with_colour, mask=opacity.resize(tile.size, Image.Resampling.BILINEAR))


# --- segmenters ------------------------------------------------------------------------------


def sample_indices(split: ADE20KSplit) -> list[int]:
    """Return the images of a segmenter's sheet, by number: they have more than one class."""

    def has_several(index: int) -> bool:
        return len(np.setdiff1d(split.label_map(index), [NO_CLASS])) > 1

    return choose_images(len(split), has_several)


def label_map_sheet(split: ADE20KSplit, predicted: Mapping[int, np.ndarray]) -> Image.Image:
    """Return the sheet of a segmenter, with the images that `predicted` has a map (H, W) of."""
    images = {index: split.load_image(index) for index in sorted(predicted)}
    names = split.classes
    return sheet(
        [draw_label_map(image, split.label_map(index), names) for index, image in images.items()],
        [draw_label_map(image, predicted[index], names) for index, image in images.items()],
    )


def draw_label_map(image: Image.Image, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Return an image as a tile coloured by class; pixels without a class stay as they are."""
    tile = _tile(image)
    resized = np.asarray(Image.fromarray(labels).resize(tile.size, Image.Resampling.NEAREST))
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(names)] = [colour(label) for label in range(len(names))]
    opacity = np.where(resized == NO_CLASS, 0, round(255 * _OPACITY)).astype(np.uint8)
    tile.paste(Image.fromarray(colours[resized]), mask=Image.fromarray(opacity))
    draw = ImageDraw.Draw(tile)
    counts = np.bincount(resized.ravel(), minlength=NO_CLASS)[:NO_CLASS]
    for label in np.argsort(-counts, kind="stable").tolist():
        if counts[label] >= MIN_NAMED_PART * resized.size:
            x, y = _label_position(resized == label)
            text = first_synonym(names[label])
            width = draw.textlength(text, _font())
            _draw_label(draw, x - width / 2, y - _LINE / 2, text, colour(label))
    return tile


def first_synonym(name: str) -> str:
    """Return the first of the names of a class; ADE20K's tables have `;` or `,` between them."""
    return re.split("[;,]", name)[0]


def _label_position(mask: np.ndarray) -> tuple[int, int]:
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


def write(path: Path, image: Image.Image) -> None:
    """Write a sheet as JPEG, atomically: the same bytes for the same sheet."""
    with replacing(path) as file:
        image.save(file, "JPEG", quality=_QUALITY)


def _tile(image: Image.Image) -> Image.Image:
    """Return an image at the size of a tile, which small ones are enlarged to."""
    scale = TILE / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _draw_label(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, on: _Colour) -> None:
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
