"""COCO's average precision and recall, as pycocotools calculates them but for 1e-12 of rounding.

An object counts as found where boxes, or masks, overlap by an IoU of 0.5, 0.55, ... 0.95; figures
without a number of their own are means over these. Objects are small below 32^2 pixels and large
from 96^2 on, by the area that the annotations give them, which is their mask's, for boxes too. Of
an image, 100 detections of each class count at most. (mmdet's AP50, AP75 and those of sizes count
1000, which makes a difference only for models that give an image more than 100.)
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from smt.errors import DataError
from smt.evaluation.predictions import Entry, ImageResult, Kind, entries

Annotations = dict[str, Any]
"""COCO's file of instances."""

PREFIX: dict[Kind, str] = {"bbox": "box", "segm": "mask"}
"""Of the names of figures."""

_AT_50, _AT_75 = 0, 5
"""Which of the IoUs."""
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
_ONE, _TEN, _HUNDRED = range(3)
"""Detections of an image and class that count."""


@dataclass(frozen=True)
class Evaluation:
    """Precision and recall of all classes, fractions; -1 where there is no object to find."""

    classes: tuple[str, ...]
    """In the order of COCO's ids."""
    precision: np.ndarray
    """(10 IoUs, 101 recalls, classes, 4 areas, 3 limits)."""
    recall: np.ndarray
    """(10 IoUs, classes, 4 areas, 3 limits)."""

    def figures(self) -> dict[str, float]:
        """Return COCO's twelve figures in percent, without those of which there is no object."""
        precision = self.precision[..., _HUNDRED]
        recall = self.recall[..., _HUNDRED]
        values = {
            "ap": precision[..., _ALL],
            "ap50": precision[_AT_50, ..., _ALL],
            "ap75": precision[_AT_75, ..., _ALL],
            "ap_small": precision[..., _SMALL],
            "ap_medium": precision[..., _MEDIUM],
            "ap_large": precision[..., _LARGE],
            "ar1": self.recall[..., _ALL, _ONE],
            "ar10": self.recall[..., _ALL, _TEN],
            "ar100": recall[..., _ALL],
            "ar_small": recall[..., _SMALL],
            "ar_medium": recall[..., _MEDIUM],
            "ar_large": recall[..., _LARGE],
        }
        return _percent(values)

    def per_class(self) -> dict[str, float]:
        """Return the AP of each class that has an object, in percent."""
        precision = self.precision[:, :, :, _ALL, _HUNDRED]
        return _percent({name: precision[:, :, i] for i, name in enumerate(self.classes)})


def _percent(values: dict[str, np.ndarray]) -> dict[str, float]:
    defined = {name: value[value > -1] for name, value in values.items()}
    return {name: 100 * float(value.mean()) for name, value in defined.items() if value.size}


def evaluate(
    annotation_file: Path,
    results: Iterable[ImageResult],
    kinds: Iterable[Kind] = ("bbox", "segm"),
    image_ids: Collection[int] | None = None,
) -> dict[str, float]:
    """Return box_ap, box_ap50, ..., box_ar_large in percent, and the same of masks as mask_ap, ...

    See `evaluations` for what is evaluated. A figure of which there is no object, such as AP of
    small ones where all are large, is not among them.

    Raises:
        DataError: as `evaluations` does.
    """
    by_kind = evaluations(annotation_file, results, kinds, image_ids)
    return {
        f"{PREFIX[kind]}_{name}": value
        for kind, evaluation in by_kind.items()
        for name, value in evaluation.figures().items()
    }


def per_class(
    annotation_file: Path,
    results: Iterable[ImageResult],
    kind: Kind,
    image_ids: Collection[int] | None = None,
) -> dict[str, float]:
    """Return the AP in percent of each class, by name; classes without an object are left out.

    Raises:
        DataError: as `evaluations` does.
    """
    return evaluations(annotation_file, results, (kind,), image_ids)[kind].per_class()


def evaluations(
    annotation_file: Path,
    results: Iterable[ImageResult],
    kinds: Iterable[Kind],
    image_ids: Collection[int] | None = None,
) -> dict[Kind, Evaluation]:
    """Return what `results`, in any order, are worth by each of `kinds`.

    All images of the annotations are evaluated, or those with `image_ids`; an image without a
    result is one where nothing was found.

    Raises:
        DataError: annotations that cannot be read, or that lack an image of `results` or of
            `image_ids`.
        ValueError: an image has two results.
    """
    annotations = _read(annotation_file)
    ordered = sorted(results, key=lambda result: result.image_id)
    ids = [result.image_id for result in ordered]
    if len(set(ids)) < len(ids):
        raise ValueError("an image has two results")
    valid_ids = {image["id"] for image in annotations["images"]}
    unknown = sorted({*ids, *(image_ids or ())} - valid_ids)
    if unknown:
        raise DataError(
            f"{annotation_file}: no image {unknown[0]}, which was to be evaluated; give the "
            "annotations that belong to the images"
        )
    numbers = _Numbers(annotations)
    truth = COCO(numbers.annotations(annotations), print_function=_print_nothing)
    evaluated = [numbers.images[id_] for id_ in (valid_ids if image_ids is None else image_ids)]
    return {
        kind: _evaluate(truth, numbers.entries(ordered, kind), kind, evaluated) for kind in kinds
    }


class _Numbers:
    """Ids counted from 1, in their order, in place of those of the annotations.

    The library holds ids as floating-point numbers, where some of 2^53 and more are the same, and
    takes an object of id 0 for none.
    """

    def __init__(self, annotations: Annotations) -> None:
        self.images = _counted(annotations["images"])
        self.categories = _counted(annotations["categories"])

    def annotations(self, annotations: Annotations) -> Annotations:
        """Return annotations with counted ids."""
        return {
            **annotations,
            "images": [
                {**entry, "id": self.images[entry["id"]]} for entry in annotations["images"]
            ],
            "categories": [
                {**entry, "id": self.categories[entry["id"]]} for entry in annotations["categories"]
            ],
            "annotations": [
                {**self._counted(entry), "id": number}
                for number, entry in enumerate(annotations["annotations"], 1)
            ],
        }

    def entries(self, results: list[ImageResult], kind: Kind) -> list[Entry]:
        """Return the objects of images with counted ids."""
        return [self._counted(entry) for entry in entries(results, kind)]

    def _counted(self, entry: Entry) -> Entry:
        image, category = entry["image_id"], entry["category_id"]
        return {
            **entry, "image_id": self.images[image], "category_id": self.categories[category]
        }  # fmt: skip


def _counted(entries: list[Entry]) -> dict[int, int]:
    return {id_: number for number, id_ in enumerate(sorted(entry["id"] for entry in entries), 1)}


def _evaluate(
    truth: COCO, results: list[Entry], kind: Kind, image_ids: Collection[int]
) -> Evaluation:
    detections = truth.loadRes(results)
    evaluator = COCOeval_faster(truth, detections, kind, print_function=_print_nothing)
    evaluator.params.imgIds = sorted(image_ids)
    evaluator.evaluate()
    evaluator.accumulate()
    names = tuple(truth.cats[id_]["name"] for id_ in evaluator.params.catIds)
    precision, recall = (np.array(evaluator.eval[name]) for name in ("precision", "recall"))
    return Evaluation(names, precision, recall)


def _print_nothing(*arguments: object) -> None:
    """Take the place of what the library would print."""


def _read(path: Path) -> Annotations:
    """Return COCO's annotations of instances.

    Raises:
        DataError: they cannot be read or are something else.
    """
    remedy = "give a file such as annotations/instances_val2017.json"
    try:
        annotations: Annotations = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {remedy}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); {remedy}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(annotations, dict) or not isinstance(annotations.get(key), list):
            raise DataError(f"{path}: missing list {key}; {remedy}")
    return annotations
