"""COCO's annotations of objects: a file `instances_*.json`, read, checked and kept as arrays."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smt.datasets import coco_json, masks
from smt.datasets.scan import InvalidDataset

SMALLEST_SIDE = 32
"""Pixels: smaller images are not trained on (mmdet, CustomDataset._filter_imgs)."""

_KEYS = ("id", "image_id", "category_id", "iscrowd", "area", "bbox")
"""What every annotation has; without a segmentation it has a box alone."""

_CROWD, _HAS_MASK, _IGNORED = 1, 2, 4
"""Bits of what is kept of an annotation."""

_LONGEST_SIDE = 2**16
"""Pixels of an image's side, of which JPEG can have no more."""


@dataclass(frozen=True)
class Instances:
    """The objects of a split, sorted by their images, and in an image as the file has them."""

    path: Path
    category_ids: tuple[int, ...]
    """Sorted: class i is the i-th."""
    classes: tuple[str, ...]
    """Names of the categories, in the same order."""
    image_ids: np.ndarray
    """(I,) int64, sorted."""
    file_names: np.ndarray
    """(I,) str."""
    sizes: np.ndarray
    """(I, 2) int64, height and width of each image in pixels."""
    offsets: np.ndarray
    """(I + 1,) int64: objects first[i] to first[i + 1] are those of image i."""
    boxes: np.ndarray
    """(N, 4) float64, x y width height as the file has them: COCO has a few without an area."""
    labels: np.ndarray
    """(N,) int64, classes."""
    is_crowd: np.ndarray
    """(N,) bool."""
    is_ignored: np.ndarray
    """(N,) bool: the file says to leave it out."""
    is_usable: np.ndarray
    """(N,) bool: no crowd, not ignored, and with a box that has an area inside the image."""
    has_mask: np.ndarray
    """(N,) bool: it has a mask, which a detector of boxes alone does not need."""
    byte_ranges: np.ndarray
    """(N, 2) int64, bytes of the file that an annotation stands in, from and to."""

    @property
    def image(self) -> np.ndarray:
        """(N,) int64: the image that an object is in."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.offsets))

    def is_trainable(self) -> np.ndarray:
        """Return (I,) bool, whether an image has an annotation that is no crowd, and is not tiny.

        As for mmdet, the annotation may be one without an area: then the image is trained on as one
        without objects.
        """
        objects = np.bincount(self.image[~self.is_crowd], minlength=len(self.image_ids))
        trainable: np.ndarray = (objects > 0) & (self.sizes.min(1) >= SMALLEST_SIDE)
        return trainable


def read(path: Path, content: bytes | memoryview) -> Instances:
    """Return the objects that a file says, `content` being its bytes.

    Raises:
        InvalidDataset: one line with the annotation, image or category that is wrong, and what is
            valid.
    """
    table = _AnnotationTable(path)
    try:
        rest = coco_json.read(content, "annotations", table.append)
    except coco_json.InvalidJson as error:
        raise InvalidDataset(f"{path} is truncated or not JSON ({error})") from None
    if missing := [key for key in ("images", "annotations", "categories") if key not in rest]:
        raise InvalidDataset(f"{path} has no {missing[0]!r}; valid: COCO's instances of a split")
    category_ids, classes = _categories(path, rest["categories"])
    image_ids, file_names, sizes = _images(path, rest["images"])
    return table.sorted(category_ids, classes, image_ids, file_names, sizes)


def _categories(path: Path, entries: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return ids and names, sorted by id."""
    ids, names = _columns(path, "category", entries, {"id": int, "name": str})
    _require_unique(path, "category id", ids)
    _require_unique(path, "category name", names)
    ordered = sorted(zip(ids, names, strict=True))
    return tuple(id_ for id_, _ in ordered), tuple(name for _, name in ordered)


def _images(path: Path, entries: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids (I,), file names (I,), heights and widths (I, 2), sorted by id."""
    kinds = {"id": int, "file_name": str, "height": int, "width": int}
    ids, names, heights, widths = _columns(path, "image", entries, kinds)
    _require_unique(path, "image id", ids)
    _require_unique(path, "file name of an image", names)
    for id_, name, height, width in zip(ids, names, heights, widths, strict=True):
        if not 0 < height < _LONGEST_SIDE or not 0 < width < _LONGEST_SIDE:
            raise InvalidDataset(
                f"{path}: image {id_} is {height} x {width} pixels; valid: 1 to {_LONGEST_SIDE - 1}"
            )
        if "/" in name or "\\" in name or name.startswith("."):
            raise InvalidDataset(
                f"{path}: image {id_} is in file {name!r}; valid: a name in the split's folder"
            )
    image_ids = np.array(ids, np.int64)
    order = np.argsort(image_ids)
    sizes = np.array([heights, widths], np.int64).T.reshape(-1, 2)
    return image_ids[order], np.array(names, np.str_)[order], sizes[order]


def _columns(path: Path, noun: str, entries: Any, kinds: dict[str, type]) -> list[list[Any]]:
    """Return the values of each key of all entries, once they are of the right kinds."""
    columns: list[list[Any]] = [[] for _ in kinds]
    if not isinstance(entries, list):
        raise InvalidDataset(f"{path}: its {noun} entries are not a list")
    for number, entry in enumerate(entries):
        for column, (key, kind) in zip(columns, kinds.items(), strict=True):
            value = entry.get(key) if isinstance(entry, dict) else None
            if not _is_valid(value, kind):
                raise InvalidDataset(
                    f"{path}: {noun} {_label(entry, number)} has no valid {key}, but "
                    f"{value!r:.40}; valid: {'one line' if kind is str else 'a whole number'}"
                )
            column.append(value)
    return columns


def _is_valid(value: Any, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str) and value.isprintable()
    # True is an int, but no number of anything.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _label(entry: Any, number: int) -> str:
    """Return how a message calls an entry: by its id, or by its place in the list (from 0)."""
    id_ = entry.get("id") if isinstance(entry, dict) else None
    return f"number {number}" if id_ is None else f"{id_!r:.40}"


def _require_unique(path: Path, what: str, values: Sequence[Any]) -> None:
    if len(set(values)) != len(values):
        twice = next(value for value, count in Counter(values).items() if count > 1)
        raise InvalidDataset(f"{path}: {what} {twice!r} is given twice; each must be unique")


def _invalid_value(entry: Any) -> str:
    """Return which value of an annotation is of another kind than it has to be, in a phrase."""
    if isinstance(entry, dict):
        for key in ("id", "image_id", "category_id", "area"):
            kind = int | float if key == "area" else int
            if key in entry and (not isinstance(entry[key], kind) or abs(entry[key]) >= 2**63):
                return f"its {key} is {entry[key]!r:.40}"
        if "bbox" in entry:
            return f"its bbox is {entry['bbox']!r:.60}"
    return f"it is {entry!r:.40}"


class _AnnotationTable:
    """The annotations in the order of the file, column by column."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids, self._images, self._categories = array("q"), array("q"), array("q")
        self._flags, self._byte_ranges = array("b"), array("q")
        self._boxes, self._areas = array("d"), array("d")
        self._extents, self._sizes = array("d"), array("q")

    def append(self, entry: Any, start: int, end: int) -> None:
        """Append an annotation; raise InvalidDataset if it is none."""
        try:
            id_, image, category, crowd, area, box = [entry[key] for key in _KEYS]
            self._ids.append(id_)
            self._images.append(image)
            self._categories.append(category)
            self._areas.append(area)
            x, y, width, height = box
            self._boxes.extend((x, y, width, height))
            info = masks.inspect_segmentation(entry.get("segmentation") or [])
            self._sizes.extend(info.size or (-1, -1))
        except masks.InvalidMask as error:
            raise InvalidDataset(self._error(entry, start, str(error))) from None
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InvalidDataset(self._error(entry, start, _invalid_value(entry))) from None
        self._extents.extend((info.lowest, info.highest))
        if crowd not in (0, 1):
            raise InvalidDataset(
                f"{self._path}: annotation {id_}: iscrowd is {crowd!r:.40}; valid: 0 or 1"
            )
        flags = (_CROWD, crowd == 1), (_HAS_MASK, info.has_mask), (_IGNORED, entry.get("ignore"))
        self._flags.append(sum(flag for flag, is_set in flags if is_set))
        self._byte_ranges.extend((start, end))

    def _error(self, entry: Any, start: int, what: str) -> str:
        where = (
            f"{self._path}: annotation {_label(entry, len(self._byte_ranges) // 2)} (byte {start})"
        )
        missing = [key for key in _KEYS if not isinstance(entry, dict) or key not in entry]
        if missing:
            return f"{where} has no {missing[0]}; valid: {', '.join(_KEYS)}"
        return (
            f"{where} is wrong: {what}; valid: whole numbers id, image_id and category_id, a "
            "number area, bbox [x, y, width, height], and as segmentation polygons [[x, y, ...]] "
            "or RLE {size, counts}"
        )

    def sorted(
        self, category_ids: tuple[int, ...], classes: tuple[str, ...], image_ids: np.ndarray,
        file_names: np.ndarray, sizes: np.ndarray,
    ) -> Instances:  # fmt: skip
        """Return all annotations by image, checked against images and categories."""
        ids, images = np.array(self._ids), np.array(self._images)
        _require_unique(self._path, "annotation id", self._ids)
        image = self._indices_of(images, image_ids, "image_id", "its images")
        label = self._indices_of(
            np.array(self._categories), np.array(category_ids), "category_id", "its categories"
        )
        size = sizes[image]
        self._require_fitting(ids, size)
        order = np.argsort(image, kind="stable")
        flags = np.array(self._flags)
        is_crowd, has_mask, is_ignored = (
            (flags & flag).astype(bool) for flag in (_CROWD, _HAS_MASK, _IGNORED)
        )
        boxes = np.array(self._boxes).reshape(-1, 4)
        is_usable = ~is_crowd & ~is_ignored & has_area(boxes, size) & (np.array(self._areas) > 0)
        return Instances(
            path=self._path,
            category_ids=category_ids,
            classes=classes,
            image_ids=image_ids,
            file_names=file_names,
            sizes=sizes,
            offsets=np.concatenate([[0], np.cumsum(np.bincount(image, minlength=len(sizes)))]),
            boxes=boxes[order],
            labels=label[order],
            is_crowd=is_crowd[order],
            is_ignored=is_ignored[order],
            is_usable=is_usable[order],
            has_mask=has_mask[order],
            byte_ranges=np.array(self._byte_ranges).reshape(-1, 2)[order],
        )

    def _indices_of(self, ids: np.ndarray, valid_ids: np.ndarray, key: str, of: str) -> np.ndarray:
        """Return where each of `ids` stands in `valid_ids`, which is sorted; all must be there."""
        index = np.searchsorted(valid_ids, ids)
        inside = index < len(valid_ids)
        inside[inside] = valid_ids[index[inside]] == ids[inside]
        if not inside.all():
            first = int(np.flatnonzero(~inside)[0])
            raise InvalidDataset(
                f"{self._path}: annotation {self._ids[first]} has {key} {ids[first]}, which is "
                f"none of {of} ({np.count_nonzero(~inside)} such); valid: an id among the "
                f"{len(valid_ids)} there"
            )
        return index

    def _require_fitting(self, ids: np.ndarray, size: np.ndarray) -> None:
        """Refuse RLE masks of another size than their image's, and corners far outside of it."""
        runs = np.array(self._sizes).reshape(-1, 2)
        other = (runs[:, 0] >= 0) & (runs != size).any(1)
        if other.any():
            first = int(np.flatnonzero(other)[0])
            raise InvalidDataset(
                f"{self._path}: annotation {ids[first]} of image {self._images[first]} has a mask "
                f"of {runs[first, 0]} x {runs[first, 1]} pixels; valid: {size[first, 0]} x "
                f"{size[first, 1]}, the image's height and width"
            )
        extents, side = np.array(self._extents).reshape(-1, 2), size.max(1)
        far = (extents[:, 0] < -side) | (extents[:, 1] > 2 * side)
        if far.any():
            first = int(np.flatnonzero(far)[0])
            raise InvalidDataset(
                f"{self._path}: annotation {ids[first]} of image {self._images[first]} has a "
                f"corner at {extents[first, 0]:g} or {extents[first, 1]:g}, far outside of the "
                f"image; valid: pixels of its {size[first, 0]} x {size[first, 1]}"
            )


def has_area(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return (N,) bool, whether boxes x y width height have an area inside images (N, 2).

    So mmdet chooses what it trains on: sides of a pixel at least, and some of it in the image. A
    box with a value that is not finite has none.
    """
    low = np.maximum(boxes[:, :2], 0)
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes[:, ::-1])
    with np.errstate(invalid="ignore"):
        inside = (high > low).all(1) & (boxes[:, 2:] >= 1).all(1)
    has: np.ndarray = inside & np.isfinite(boxes).all(1)
    return has
