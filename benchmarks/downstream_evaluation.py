"""How long COCO's average precision takes, against pycocotools on the same detections.

`python benchmarks/downstream_evaluation.py` generates annotations of 5,000 images, 80 categories
and about 7 objects an image, and 100 detections of each image: objects with noise, and false
positives, most of them of categories that the image has. Both ways start from the
annotations' file and from detections in memory, and take turns; wall and CPU seconds are printed,
their ratios, and by how much any of the twelve figures differs. `--kinds bbox segm` adds masks,
which are ellipses: polygons in the annotations, run lengths in the detections.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smt.evaluation.coco import PREFIX, evaluate
from smt.evaluation.predictions import Entry, ImageResult, Kind, entries
from smt.runs.atomic import write_json

SIZE = (480, 640)
"""Height and width of every image."""
CATEGORIES = 80
OBJECTS = 7
"""Of an image in the mean; a Poisson number, at least one."""
DETECTIONS = 100
"""Of every image."""
OFF = 0.1
"""Standard deviation of a detection's coordinates, over the object's sides."""
CORNERS = 24
"""Of the polygon that stands for an ellipse."""

NAMES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""Of the figures, in the order of pycocotools."""

Metrics = dict[str, float]


@dataclass(frozen=True)
class Seconds:
    """What one evaluation took."""

    wall: float
    cpu: float
    """Of all threads."""


@dataclass(frozen=True)
class Objects:
    """What is in one image, annotated or detected."""

    boxes: np.ndarray
    """(N, 4): x y width height in pixels, inside the image."""
    categories: np.ndarray
    """(N,) int64, from 1 on."""

    def outlines(self) -> np.ndarray:
        """Return polygons (N, 2 * CORNERS), x y x y ..., of the ellipses that fill the boxes."""
        angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
        circle = (np.stack([np.cos(angle), np.sin(angle)], axis=1) + 1) / 2  # (CORNERS, 2)
        corners = self.boxes[:, None, :2] + circle * self.boxes[:, None, 2:]
        return corners.reshape(len(corners), -1)


def inside(boxes: np.ndarray) -> np.ndarray:
    """Return boxes (N, 4) x y width height cut to the image; each keeps a pixel at least."""
    limit = np.array(SIZE[::-1], dtype=float)
    first = np.clip(boxes[:, :2], 0, limit - 1)
    last = np.clip(boxes[:, :2] + boxes[:, 2:], first + 1, limit)
    return np.concatenate([first, last - first], axis=1)


def random_boxes(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return boxes (count, 4) of small, medium and large objects anywhere in the image."""
    limit = np.array(SIZE[::-1], dtype=float)
    sides = np.exp(generator.uniform(np.log(8), np.log(0.8 * limit), (count, 2)))
    return inside(np.concatenate([generator.uniform(0, limit - sides), sides], axis=1))


def make_annotations(generator: np.random.Generator) -> Objects:
    count = max(1, int(generator.poisson(OBJECTS)))
    return Objects(random_boxes(generator, count), generator.integers(1, CATEGORIES + 1, count))


def make_detections(generator: np.random.Generator, truth: Objects) -> Objects:
    """Return detections: a third of them objects of the image, with deviations."""
    near_objects = DETECTIONS // 3  # they come first
    index = generator.integers(len(truth.boxes), size=near_objects)
    size = np.tile(truth.boxes[index, 2:], 2)
    near = inside(truth.boxes[index] + generator.normal(0, OFF, (near_objects, 4)) * size)
    likely = np.concatenate([truth.categories, generator.integers(1, CATEGORIES + 1, 8)])
    elsewhere = random_boxes(generator, DETECTIONS - near_objects)
    categories = [truth.categories[index], generator.choice(likely, len(elsewhere))]
    return Objects(np.concatenate([near, elsewhere]), np.concatenate(categories))


def annotation_entries(truth: Objects, image: int, first: int) -> list[dict[str, Any]]:
    """Return an image's objects as COCO has them, numbered from `first`."""
    described = zip(truth.boxes, truth.categories, truth.outlines(), strict=True)
    return [
        {
            "id": first + index,
            "image_id": image,
            "category_id": int(category),
            "iscrowd": 0,
            "bbox": box.tolist(),
            "area": float(box[2] * box[3] * np.pi / 4),
            "segmentation": [outline.tolist()],
        }
        for index, (box, category, outline) in enumerate(described)
    ]


def image_result(
    generator: np.random.Generator, objects: Objects, image: int, masks: bool
) -> ImageResult:
    """Return detections as this project has them, best first; objects have the better scores."""
    scores = generator.uniform(0.05, 1, len(objects.boxes))
    scores[: len(scores) // 3] **= 0.5
    order = np.argsort(-scores)
    runs = None
    if masks:
        polygons = objects.outlines()[order]
        runs = tuple(
            encoded["counts"].decode() for encoded in rle.frPyObjects(polygons.tolist(), *SIZE)
        )
    return ImageResult(
        image,
        SIZE,
        tuple(map(tuple, objects.boxes[order].tolist())),
        tuple(scores[order].tolist()),
        tuple(objects.categories[order].tolist()),
        runs,
    )


def write_annotations(path: Path, images: int, masks: bool) -> list[ImageResult]:
    """Write annotations of `images` images to `path`; return the detections in each."""
    generator = np.random.default_rng(0)
    objects: list[dict[str, Any]] = []
    results = []
    for image in range(1, images + 1):
        truth = make_annotations(generator)
        objects += annotation_entries(truth, image, len(objects) + 1)
        results.append(image_result(generator, make_detections(generator, truth), image, masks))
    height, width = SIZE
    everything = {
        "images": [{"id": i, "height": height, "width": width} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"category {i}"} for i in range(1, CATEGORIES + 1)],
        "annotations": objects,
    }
    path.write_text(json.dumps(everything))
    return results


def pycocotools_metrics(path: Path, detections: list[Entry], kind: Kind) -> Metrics:
    """Return the figures in percent; it adds keys to the entries that it is given."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pycocotools 2.0 under numpy 2
        truth = COCO(path)
        evaluator = COCOeval(truth, truth.loadRes(detections), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    values = zip(NAMES, evaluator.stats.tolist(), strict=True)
    return {f"{PREFIX[kind]}_{name}": 100 * value for name, value in values if value > -1}


def timed(call: Callable[[], Metrics]) -> tuple[Metrics, Seconds]:
    wall, cpu = time.perf_counter(), time.process_time()
    figures = call()
    return figures, Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def compare(path: Path, results: list[ImageResult], kind: Kind, rounds: int) -> dict[str, Any]:
    """Return the seconds of both ways, round by round in turn, and their metrics."""
    seconds: dict[str, list[Seconds]] = {"smt": [], "pycocotools": []}
    for _ in range(rounds):
        detections = list(entries(results, kind))  # ours makes them inside the timed call
        ours, our_seconds = timed(lambda: evaluate(path, results, (kind,)))
        theirs, their_seconds = timed(
            lambda detections=detections: pycocotools_metrics(path, detections, kind)
        )
        seconds["smt"].append(our_seconds)
        seconds["pycocotools"].append(their_seconds)
    assert ours.keys() == theirs.keys()
    return {
        "wall_seconds": {name: [sample.wall for sample in of] for name, of in seconds.items()},
        "cpu_seconds": {name: [sample.cpu for sample in of] for name, of in seconds.items()},
        "figures": {"smt": ours, "pycocotools": theirs},
        "largest_difference": max(abs(ours[name] - theirs[name]) for name in ours),
    }


def row(kind: Kind, result: dict[str, Any]) -> str:
    """Return a line of the table."""
    cells = [kind]
    for clock in ("wall_seconds", "cpu_seconds"):
        ours, theirs = result[clock]["smt"], result[clock]["pycocotools"]
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        cells += [f"{statistics.median(times):.2f}" for times in (ours, theirs)]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    cells.append(f"{result['figures']['smt'][f'{PREFIX[kind]}_ap']:.3f}")
    cells.append(f"{result['largest_difference']:.1e}")
    return f"| {' | '.join(cells)} |"


HEADER = """\
| kind | smt, wall s | pycocotools | times as fast | smt, CPU s | pycocotools | times | AP | \
largest difference |
|---|---|---|---|---|---|---|---|---|"""


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("--images", type=int, default=5000, help="images [5000]")
    parser.add_argument("--rounds", type=int, default=3, help="evaluations of each way [3]")
    parser.add_argument("--kinds", nargs="+", choices=tuple(PREFIX), default=["bbox"])
    parser.add_argument("--json", type=Path, help="write every round and figure to this file")
    return parser.parse_args()


def main() -> None:
    """Measure every kind."""
    arguments = arguments_of(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        results = write_annotations(path, arguments.images, "segm" in arguments.kinds)
        print(
            f"{arguments.images} images, {DETECTIONS} detections each, {CATEGORIES} categories; "
            f"medians of {arguments.rounds} rounds; AP and differences in percent points\n"
        )
        print(HEADER)
        for kind in arguments.kinds:
            result[kind] = compare(path, results, kind, arguments.rounds)
            print(row(kind, result[kind]), flush=True)
    if arguments.json:
        write_json(arguments.json, {"images": arguments.images, "kinds": result})


if __name__ == "__main__":
    main()
