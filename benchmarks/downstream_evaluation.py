"""How long COCO's average precision takes, against pycocotools on the same detections.

`python benchmarks/downstream_evaluation.py` draws annotations of 5,000 images, 80 categories and
about 7 objects an image, and 100 detections of each image: objects that are slightly off, and boxes
where there is nothing, most of them of categories that the image has. Both ways start from the
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
"""Of an object's sides: the deviation by which a detection of it misses each."""
CORNERS = 24
"""Of the polygon that stands for an ellipse."""

NAMES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""Of the figures, in the order of pycocotools."""

Figures = dict[str, float]


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


def somewhere(draw: np.random.Generator, count: int) -> np.ndarray:
    """Return boxes (count, 4) of small, medium and large objects anywhere in the image."""
    limit = np.array(SIZE[::-1], dtype=float)
    sides = np.exp(draw.uniform(np.log(8), np.log(0.8 * limit), (count, 2)))
    return inside(np.concatenate([draw.uniform(0, limit - sides), sides], axis=1))


def annotated(draw: np.random.Generator) -> Objects:
    count = max(1, int(draw.poisson(OBJECTS)))
    return Objects(somewhere(draw, count), draw.integers(1, CATEGORIES + 1, count))


def detected(draw: np.random.Generator, truth: Objects) -> Objects:
    """Return detections: a third of them objects of the image, with deviations."""
    found = DETECTIONS // 3  # they come first
    which = draw.integers(len(truth.boxes), size=found)
    size = np.tile(truth.boxes[which, 2:], 2)
    near = inside(truth.boxes[which] + draw.normal(0, OFF, (found, 4)) * size)
    likely = np.concatenate([truth.categories, draw.integers(1, CATEGORIES + 1, 8)])
    elsewhere = somewhere(draw, DETECTIONS - found)
    categories = [truth.categories[which], draw.choice(likely, len(elsewhere))]
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


def image_result(draw: np.random.Generator, found: Objects, image: int, masks: bool) -> ImageResult:
    """Return detections as this project has them, best first; objects have the better scores."""
    scores = draw.uniform(0.05, 1, len(found.boxes))
    scores[: len(scores) // 3] **= 0.5
    order = np.argsort(-scores)
    runs = None
    if masks:
        polygons = found.outlines()[order]
        runs = tuple(each["counts"].decode() for each in rle.frPyObjects(polygons.tolist(), *SIZE))
    return ImageResult(
        image,
        SIZE,
        tuple(map(tuple, found.boxes[order].tolist())),
        tuple(scores[order].tolist()),
        tuple(found.categories[order].tolist()),
        runs,
    )


def write_annotations(path: Path, images: int, masks: bool) -> list[ImageResult]:
    """Write annotations of so many images to `path`; return what was detected in each."""
    draw = np.random.default_rng(0)
    objects: list[dict[str, Any]] = []
    results = []
    for image in range(1, images + 1):
        truth = annotated(draw)
        objects += annotation_entries(truth, image, len(objects) + 1)
        results.append(image_result(draw, detected(draw, truth), image, masks))
    height, width = SIZE
    everything = {
        "images": [{"id": i, "height": height, "width": width} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"category {i}"} for i in range(1, CATEGORIES + 1)],
        "annotations": objects,
    }
    path.write_text(json.dumps(everything))
    return results


def by_pycocotools(path: Path, found: list[Entry], kind: Kind) -> Figures:
    """Return the figures in percent; it adds keys to the entries that it is given."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pycocotools 2.0 under numpy 2
        truth = COCO(path)
        evaluator = COCOeval(truth, truth.loadRes(found), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    named = zip(NAMES, evaluator.stats.tolist(), strict=True)
    return {f"{PREFIX[kind]}_{name}": 100 * value for name, value in named if value > -1}


def timed(call: Callable[[], Figures]) -> tuple[Figures, Seconds]:
    wall, cpu = time.perf_counter(), time.process_time()
    figures = call()
    return figures, Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def compare(path: Path, results: list[ImageResult], kind: Kind, rounds: int) -> dict[str, Any]:
    """Return the seconds of both ways, round by round in turn, and what their figures are."""
    seconds: dict[str, list[Seconds]] = {"smt": [], "pycocotools": []}
    for _ in range(rounds):
        found = list(entries(results, kind))  # which ours makes while its clock runs
        ours, own = timed(lambda: evaluate(path, results, (kind,)))
        theirs, other = timed(lambda found=found: by_pycocotools(path, found, kind))
        seconds["smt"].append(own)
        seconds["pycocotools"].append(other)
    assert ours.keys() == theirs.keys()
    return {
        "wall_seconds": {name: [each.wall for each in of] for name, of in seconds.items()},
        "cpu_seconds": {name: [each.cpu for each in of] for name, of in seconds.items()},
        "figures": {"smt": ours, "pycocotools": theirs},
        "largest_difference": max(abs(ours[name] - theirs[name]) for name in ours),
    }


def row(kind: Kind, measured: dict[str, Any]) -> str:
    """Return a line of the table."""
    cells = [kind]
    for clock in ("wall_seconds", "cpu_seconds"):
        ours, theirs = measured[clock]["smt"], measured[clock]["pycocotools"]
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        cells += [f"{statistics.median(each):.2f}" for each in (ours, theirs)]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    cells.append(f"{measured['figures']['smt'][f'{PREFIX[kind]}_ap']:.3f}")
    cells.append(f"{measured['largest_difference']:.1e}")
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
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        results = write_annotations(path, arguments.images, "segm" in arguments.kinds)
        print(
            f"{arguments.images} images, {DETECTIONS} detections each, {CATEGORIES} categories; "
            f"medians of {arguments.rounds} rounds; AP and differences in percent points\n"
        )
        print(HEADER)
        for kind in arguments.kinds:
            measured[kind] = compare(path, results, kind, arguments.rounds)
            print(row(kind, measured[kind]), flush=True)
    if arguments.json:
        write_json(arguments.json, {"images": arguments.images, "kinds": measured})


if __name__ == "__main__":
    main()
