"""Detections as COCO's tools and its test server take them: records, and files of them."""

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from faster_coco_eval.core import mask as rle
from torch import Tensor

from smt.detection.boxes import clip
from smt.detection.paste import paste
from smt.detection.structures import Detections, Size
from smt.errors import DataError
from smt.runs.atomic import replacing

Kind = Literal["bbox", "segm"]
"""What detections are compared by: their boxes, or their masks."""

FILES: Mapping[Kind, str] = {"bbox": "detections_bbox.json", "segm": "detections_segm.json"}

MAX_PASTED = 2**26
"""Pixels of masks that are drawn before they are encoded: 64 MB."""

REMEDY = "evaluate the run again, which writes the file"

Entry = dict[str, Any]
"""An object as COCO's results format has it."""


@dataclass(frozen=True)
class ImageResult:
    """What was found in one image, best first; of plain values, to be sent between processes."""

    image_id: int
    size: Size
    """Of the image as it is on disk."""
    boxes: tuple[tuple[float, ...], ...]
    """x y width height in pixels of that image."""
    scores: tuple[float, ...]
    categories: tuple[int, ...]
    """COCO's ids, not the model's labels."""
    masks: tuple[str, ...] | None
    """Run lengths in COCO's compressed notation."""


def image_result(
    detections: Detections, image_id: int, *, input_size: Size, size: Size,
    categories: Sequence[int], mask_threshold: float,
) -> ImageResult:  # fmt: skip
    """Return what a model found, at the size of the image on disk.

    `input_size` is the size that the model saw, without padding; the two axes are scaled by ratios
    of their own, since resizing rounds each. `categories` are COCO's ids by label. What has a score
    or a box that is not finite is left out.
    """
    finite = detections.boxes.isfinite().all(1) & detections.scores.isfinite()
    boxes = to_original(detections.boxes[finite].float(), input_size, size)
    masks = detections.masks
    corners = boxes.tolist()
    return ImageResult(
        image_id,
        size,
        tuple((x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in corners),
        tuple(detections.scores[finite].tolist()),
        tuple(categories[label] for label in detections.labels[finite].tolist()),
        None if masks is None else tuple(encode(masks[finite], boxes, size, mask_threshold)),
    )


def to_original(boxes: Tensor, input_size: Size, size: Size) -> Tensor:
    """Return boxes (N, 4) in an image of `input_size` scaled to the image of `size`, cut to it."""
    y, x = size[0] / input_size[0], size[1] / input_size[1]
    return clip(boxes * boxes.new_tensor([x, y, x, y]), size)


def encode(masks: Tensor, boxes: Tensor, size: Size, threshold: float) -> Iterator[str]:
    """Yield the run lengths of masks (N, M, M) drawn into their boxes of an image of `size`."""
    step = max(MAX_PASTED // (size[0] * size[1]), 1)
    for some, where in zip(masks.split(step), boxes.split(step), strict=True):
        pixels = paste(some, where, size, threshold).cpu()
        # Runs go down the columns: (h, w, N), the first axis contiguous.
        columns = pixels.transpose(1, 2).contiguous().numpy().view(np.uint8).transpose(2, 1, 0)
        for encoded in rle.encode(columns):
            yield encoded["counts"].decode("ascii")


def entries(results: Iterable[ImageResult], kind: Kind) -> Iterator[Entry]:
    """Yield the objects of images in the order of their ids, those of an image best first.

    Masks come without boxes: COCO's tools would take an object's area from its box.
    """
    for result in sorted(results, key=lambda result: result.image_id):
        if kind == "segm" and result.masks is None:
            raise ValueError(f"image {result.image_id}: no masks")
        for index, category in enumerate(result.categories):
            entry: Entry = {"image_id": result.image_id, "category_id": category}
            if kind == "bbox":
                entry["bbox"] = list(result.boxes[index])
            else:
                assert result.masks is not None
                entry["segmentation"] = {"size": list(result.size), "counts": result.masks[index]}
            yield {**entry, "score": result.scores[index]}


def write(folder: Path, results: Sequence[ImageResult], kinds: Iterable[Kind]) -> list[Path]:
    """Write a file of each kind into `folder`, an object a line, and return their paths.

    The bytes depend on the results alone, not on their order.
    """
    paths = [folder / FILES[kind] for kind in kinds]
    for kind, path in zip(kinds, paths, strict=True):
        with replacing(path) as file:
            before = b"[\n"
            for entry in entries(results, kind):
                file.write(before + json.dumps(entry, separators=(",", ":")).encode())
                before = b",\n"
            file.write(b"\n]\n" if before == b",\n" else b"[]\n")
    return paths


def read(
    folder: Path, images: Mapping[int, Size], categories: Collection[int]
) -> list[ImageResult]:
    """Return what `write` wrote into `folder`, with masks if there is a file of them.

    `images` are the sizes of the images that can be meant, by id; only those with a detection come
    back, in the order of their ids.

    Raises:
        DataError: naming file and entry: not JSON, not COCO's format, an image or category that
            does not exist, masks that do not belong to the boxes.
    """
    reader = _Reader(folder / FILES["bbox"], images, categories)
    boxes = reader.objects("bbox")
    masks: list[Entry] | None = None
    if (folder / FILES["segm"]).exists():
        masks = _Reader(folder / FILES["segm"], images, categories).objects("segmentation")
        _require_same_objects(boxes, masks, folder)
    by_image: dict[int, list[int]] = defaultdict(list)
    for index, entry in enumerate(boxes):
        by_image[entry["image_id"]].append(index)
    return [
        ImageResult(
            image,
            images[image],
            tuple(tuple(map(float, boxes[row]["bbox"])) for row in indices),
            tuple(float(boxes[row]["score"]) for row in indices),
            tuple(boxes[row]["category_id"] for row in indices),
            tuple(masks[row]["segmentation"]["counts"] for row in indices) if masks else None,
        )
        for image, indices in sorted(by_image.items())
    ]


def _require_same_objects(boxes: list[Entry], masks: list[Entry], folder: Path) -> None:
    keys = ("image_id", "category_id", "score")
    first, second = FILES["bbox"], FILES["segm"]
    if len(boxes) != len(masks):
        raise DataError(
            f"{folder}: {len(boxes)} objects in {first}, {len(masks)} in {second}; {REMEDY}"
        )
    for index, (box, mask) in enumerate(zip(boxes, masks, strict=True), 1):
        if any(box[key] != mask[key] for key in keys):
            raise DataError(
                f"{folder}: entry {index} of {second} is another object than that of {first}; "
                f"{REMEDY}"
            )


@dataclass(frozen=True)
class _Reader:
    """Reads and checks one file."""

    path: Path
    images: Mapping[int, Size]
    categories: Collection[int]

    def objects(self, key: Literal["bbox", "segmentation"]) -> list[Entry]:
        """Return the file's entries, each with the `key`."""
        try:
            objects = json.loads(self.path.read_bytes())
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}; {REMEDY}") from None
        except ValueError as error:
            raise DataError(f"{self.path}: cut off, or not JSON ({error}); {REMEDY}") from None
        if not isinstance(objects, list):
            raise DataError(f"{self.path}: expected a list of objects; {REMEDY}")
        valid = _is_box if key == "bbox" else self._is_mask
        for index, entry in enumerate(objects, 1):
            problem = self._problem(entry) or (
                None if valid(entry) else f"no valid {key}: {str(entry.get(key))[:60]}"
            )
            if problem:
                raise DataError(f"{self.path}: entry {index}: {problem}; {REMEDY}")
        return objects

    def _problem(self, entry: Any) -> str | None:
        if not isinstance(entry, dict):
            return "expected an object with image_id, category_id and score"
        image, category = entry.get("image_id"), entry.get("category_id")
        if not isinstance(image, int) or image not in self.images:
            return f"image_id {image!r} is none of the {len(self.images)} images annotated"
        if not isinstance(category, int) or category not in self.categories:
            valid = ", ".join(str(id_) for id_ in sorted(self.categories))
            return f"category_id {category!r} does not exist; valid: {valid}"
        if not _are_numbers([entry.get("score")], 1):
            return f"score {entry.get('score')!r} is no number"
        return None

    def _is_mask(self, entry: Entry) -> bool:
        mask, (height, width) = entry.get("segmentation"), self.images[entry["image_id"]]
        if not isinstance(mask, dict) or mask.get("size") != [height, width]:
            return False
        counts = mask.get("counts")
        return isinstance(counts, str) and _pixels_covered(counts) == height * width


def _is_box(entry: Entry) -> bool:
    box = entry.get("bbox")
    return isinstance(box, list) and _are_numbers(box, 4) and min(box[2:]) >= 0


def _are_numbers(values: list[Any], count: int) -> bool:
    numbers = all(isinstance(value, int | float) and abs(value) < math.inf for value in values)
    return numbers and len(values) == count


def _pixels_covered(counts: str) -> int | None:
    """Return how many pixels run lengths are of; None for what are none.

    COCO's tools do not come back from comparing masks that end before their image does. A number
    has 5 bits a character, lowest first, 32 says that more follow, and the last one's 16 is the
    sign. From the fourth on they are differences to the number before last.
    """
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(~codes & 32)
    starts = np.append(0, ends[:-1] + 1)
    places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 7:  # more than any image has
        return None
    runs = np.add.reduceat((codes & 31) << 5 * places, starts)
    runs -= np.where(codes[ends] & 16, 1 << 5 * (places[ends] + 1), 0)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return int(runs.sum()) if runs.min() >= 0 else None
