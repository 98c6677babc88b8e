"""Property tests: data that the manifest accepts are trained on and evaluated correctly.

Hypothesis generates annotation files and label maps as converters write them, valid, on the edge
of it and invalid. Invalid data are refused in one line. Valid data go through two steps of every
head and an evaluation, whose AP equals that of pycocotools, and whose mIoU that of a loop.
"""

import io
import json
import math
import re
from collections import Counter
from contextlib import closing, redirect_stdout
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smt.config.experiments import Run
from smt.datasets import manifest_writer
from smt.datasets.label_maps import NO_CLASS
from smt.engine import optim
from smt.engine.distributed import Ranks
from smt.errors import DataError
from smt.evaluation.coco import PREFIX
from smt.evaluation.predictions import ImageResult, entries, read
from smt.runs.paths import Layout
from smt.tasks.build import build_task
from tests.helpers.params import project_at

# pycocotools 2.0 under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

BATCH = 2


def in_small_batches(project):
    """Return a project whose batches a few images fill."""
    small = {"global_batch": BATCH, "device_batch": BATCH}
    recipes = {name: recipe.model_copy(update=small) for name, recipe in project.recipes.items()}
    return project.model_copy(update={"recipes": recipes})


PROJECT = in_small_batches(project_at("smoke"))
ONE = Ranks(0, 1, torch.device("cpu"))
DETECTORS = {
    name: experiment
    for name, experiment in PROJECT.experiments.items()
    if experiment.task == "detect" and experiment.model == "smt_small"
    if name != "coco_mask_rcnn_3x_smt_small"  # the head of 1x
}
SEGMENTER = "ade20k_upernet_smt_small"
CLASSES = 3
MOST_SIDE = 70

sides = st.sampled_from([*range(30, MOST_SIDE), 1, 2, 3, 31, 32, 33, 200])
colours = st.integers(0, 2**32 - 1)
"""Seed of an image's pixels."""


QUICK_EXAMPLES, SLOW_EXAMPLES = 12, 150
"""Data sets that each test generates, and its slow variant."""


def examples(count):
    """Return settings to generate `count` data sets, the same ones in each run."""
    return settings(
        max_examples=count, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


# --- COCO -----------------------------------------------------------------------------------------


@st.composite
def annotations(draw, height, width):
    """Generate an annotation as a converter may write it; its ids come later."""
    x, y = (draw(st.floats(-2, max(side - 1, 0), width=32)) for side in (width, height))
    w, h = (draw(st.floats(0, side + 3, width=32)) for side in (width, height))
    right, bottom = x + w, y + h
    runs = [height * width // 2, -(-height * width // 2)]
    segmentation = draw(
        st.sampled_from([
            [[x, y, right, y, right, bottom, x, bottom]],
            [[x, y, right, y, x, bottom], [right, bottom, right, y, x, bottom]],
            [[x, y, right, bottom]], [], None,
            {"size": [height, width], "counts": [0, height * width]},
            {"size": [height, width], "counts": runs},
        ])
    )  # fmt: skip
    return {
        "category_id": draw(st.integers(0, CLASSES - 1)),
        "bbox": [x, y, w, h],
        "area": draw(st.sampled_from([w * h, w * h, 0, 0.5, 5000.0, math.nan])),
        "iscrowd": int(draw(st.integers(0, 9)) == 0),
        "segmentation": segmentation,
    }


def has_no_area(segmentation):
    return not segmentation or (isinstance(segmentation, list) and len(segmentation[0]) < 6)


def without(key):
    return lambda entry: entry.pop(key)


def with_segmentation(value):
    return lambda entry: entry.update(segmentation=value)


FAULTS = (
    without("area"), without("iscrowd"), without("bbox"),
    with_segmentation([[[1, 1], [5, 1], [5, 5]]]), with_segmentation([[1, 1], [5, 1], [1, 5]]),
    with_segmentation([{"size": [5, 5], "counts": [25]}]),
    with_segmentation({"size": [5, 5], "counts": [25.0]}),
    lambda entry: entry.update(bbox=[1, 2, 3]), lambda entry: entry.update(category_id="1"),
    lambda entry: entry.update(bbox=[1e30, 2, 3, 1e300]),
)  # fmt: skip
"""Edits that make an annotation invalid, as in real files."""


@st.composite
def pictures(draw):
    """Generate the size of an image, how it is stored, and its objects."""
    height, width = draw(sides), draw(sides)
    return {
        "size": (height, width),
        "orientation": draw(st.sampled_from([1, 1, 3, 6, 8])),
        "suffix": draw(st.sampled_from([".jpg", ".png", ".PNG", "16.png"])),
        "seed": draw(colours),
        "objects": draw(st.lists(annotations(height, width), min_size=1, max_size=4)),
    }


@st.composite
def coco_sets(draw):
    """Generate both splits of a data set, with ids from small to beyond 2^53.

    In half of them every annotation has a mask; in every sixth, one annotation has a fault.
    """
    splits = {
        split: {
            "pictures": draw(st.lists(pictures(), min_size=least, max_size=6)),
            "first_image": draw(st.sampled_from([0, 1, 7, 2**53])),
            "first_annotation": draw(st.sampled_from([0, 1, 2**53])),
        }
        for split, least in (("train", 3), ("val", 2))
    }
    if draw(st.booleans()):
        for picture in (picture for content in splits.values() for picture in content["pictures"]):
            for entry in picture["objects"]:
                if has_no_area(entry["segmentation"]):
                    height, width = picture["size"]
                    entry["segmentation"] = {"size": [height, width], "counts": [0, height * width]}
    if draw(st.integers(0, 5)) == 0:
        objects = [entry for content in splits.values() for picture in content["pictures"]
                 for entry in picture["objects"]]  # fmt: skip
        if objects:
            draw(st.sampled_from(FAULTS))(draw(st.sampled_from(objects)))
    return splits


def save(path, picture):
    """Write an image so that its EXIF orientation gives it its size."""
    height, width = picture["size"]
    if picture["orientation"] >= 5:
        height, width = width, height
    draw = np.random.default_rng(picture["seed"])
    exif = Image.Exif()
    exif[0x0112] = picture["orientation"]
    if picture["suffix"].startswith("16"):
        pixels = draw.integers(0, 2**16, (height, width), np.uint16)
    else:
        pixels = draw.integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)


def write_coco(root, splits):
    """Write a data set; return its number of images by split."""
    (root / "annotations").mkdir(parents=True)
    counts = {}
    for split, content in splits.items():
        folder = root / f"{split}2017"
        folder.mkdir()
        images, objects = [], []
        for number, picture in enumerate(content["pictures"]):
            id_ = content["first_image"] + number
            name = f"{number} ü{picture['suffix']}"
            save(folder / name, picture)
            height, width = picture["size"]
            images.append({"id": id_, "file_name": name, "height": height, "width": width})
            objects += [{**annotation, "image_id": id_} for annotation in picture["objects"]]
        for number, annotation in enumerate(objects):
            annotation["id"] = content["first_annotation"] + number
        categories = [{"id": number, "name": f"class {number}"} for number in range(CLASSES)]
        text = json.dumps({"images": images, "annotations": objects, "categories": categories})
        (root / "annotations" / f"instances_{split}2017.json").write_text(text)
        counts[split] = len(images)
    return counts


def project_with(name, counts, classes):
    dataset = PROJECT.datasets[name].model_copy(
        update={
            "classes": classes, "train_images": counts["train"], "val_images": counts["val"],
            "images_with_objects": counts.get("trained"), "generator": None,
        }
    )  # fmt: skip
    return PROJECT.model_copy(update={"datasets": {**PROJECT.datasets, name: dataset}})


def accepted_project(layout, name, counts, classes):
    """Return the project with a data set that the manifest accepts, or None.

    Like a user, it takes the number of training images with objects from the error.
    """
    for _ in range(2):
        project = project_with(name, counts, classes)
        try:
            manifest_writer.write(project, layout, name)
        except DataError as error:
            assert "\n" not in str(error) and str(error).startswith(f"{name}: ")
            trained = re.search(r" has (\d+) images that show an object", str(error))
            if trained is None or int(trained[1]) < BATCH:
                return None
            counts = {**counts, "trained": int(trained[1])}
        else:
            return project
    return None


def train_and_evaluate(project, layout, experiment):
    """Take two steps, evaluate as `smt evaluate` does; return the task and its metrics."""
    run = Run(experiment=experiment, seed=0)
    task: Any = build_task(project, layout, run, ONE, inherit=False)
    optimizer = optim.adamw(task.model, task.recipe.optimizer)
    for epoch in range(2):
        with closing(task.micro_batches(epoch, 0)) as batches:
            loss = task.loss(task.model, next(batches))
        assert loss.isfinite(), loss
        loss.backward()
        norm = optim.clip(list(task.model.parameters()), task.recipe.optimizer.clip_norm)
        assert norm.isfinite()
        optimizer.step()
        optimizer.zero_grad()
    return task, task.evaluate(outputs=layout.evaluation_outputs(run))


def near_the_truth(split, with_masks):
    """Return results for some images of a split, near the annotated objects."""
    draw = np.random.default_rng(0)
    for index in range(len(split)):
        truth, image = split.annotation(index), split.images[index]
        if draw.random() < 0.2:
            continue
        corners = truth.boxes + draw.normal(0, 1, truth.boxes.shape)
        boxes = np.concatenate([corners[:, :2], (corners[:, 2:] - corners[:, :2]).clip(0)], axis=1)
        masks = split.masks(index).astype(np.uint8) if with_masks else []
        yield ImageResult(
            image.id, (image.height, image.width), tuple(map(tuple, boxes.tolist())),
            tuple(np.round(draw.random(len(boxes)), 1).tolist()),
            tuple(split.category_ids[label] for label in truth.labels),
            tuple(rle.encode(np.asfortranarray(mask))["counts"].decode() for mask in masks)
            if with_masks else None,
        )  # fmt: skip


def average_precision(path, results, kind):
    """Return AP, AP50 and AP75 by pycocotools, of annotations whose ids are counted from 1."""
    content = json.loads(path.read_text())
    number = {entry["id"]: n for n, entry in enumerate(content["images"], 1)}
    for entry in content["images"]:
        entry["id"] = number[entry["id"]]
    for entry in content["categories"]:
        entry["id"] += 1
    for n, entry in enumerate(content["annotations"], 1):
        entry.update(id=n, image_id=number[entry["image_id"]], category_id=entry["category_id"] + 1)
    detections = [
        {**entry, "image_id": number[entry["image_id"]], "category_id": entry["category_id"] + 1}
        for entry in results
    ]
    if not detections:
        return [0.0, 0.0, 0.0]
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(detections), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [100 * value for value in evaluator.stats[:3]]


def assert_metrics(metrics, path, results, kinds):
    for kind in kinds:
        expected = average_precision(path, entries(results, kind), kind)
        names = [f"{PREFIX[kind]}_ap{suffix}" for suffix in ("", "50", "75")]
        assert [metrics.get(name, -100) for name in names] == pytest.approx(expected, abs=1e-9)


def check_coco(folder, splits):
    """Train and evaluate on a data set as described above; return how many heads were trained."""
    layout = Layout("smoke", folder / "results", folder)
    root = layout.dataset_root(PROJECT.datasets["coco"])
    project = accepted_project(layout, "coco", write_coco(root, splits), CLASSES)
    trained = 0
    for experiment, spec in DETECTORS.items() if project else ():
        try:
            task, metrics = train_and_evaluate(project, layout, experiment)
        except DataError as error:
            assert "and this head predicts masks" in str(error) and "mask_rcnn" in spec.head
            continue
        split, kinds = task._val, task._kinds
        outputs = layout.evaluation_outputs(Run(experiment=experiment, seed=0))
        sizes = {image.id: (image.height, image.width) for image in split.images}
        results = read(outputs.predictions, sizes, split.category_ids)
        assert_metrics(metrics, split.annotation_file, results, kinds)
        results = list(near_the_truth(split, "segm" in kinds))
        metrics = task.average_precision(results)
        assert_metrics(metrics, split.annotation_file, results, kinds)
        trained += 1
    return trained


def train_on_coco_sets(tmp_path_factory, count):
    """Check `count` generated data sets; return the number of heads that each trained."""
    heads = []

    @given(coco_sets())
    @examples(count)
    def check(splits):
        heads.append(check_coco(tmp_path_factory.mktemp("coco"), splits))

    check()
    return heads


def test_valid_coco_data_train_every_head_with_correct_metrics(tmp_path_factory):
    assert max(train_on_coco_sets(tmp_path_factory, QUICK_EXAMPLES)) == len(DETECTORS)


@pytest.mark.slow
def test_many_random_coco_data_sets(tmp_path_factory):
    heads = train_on_coco_sets(tmp_path_factory, SLOW_EXAMPLES)
    assert max(heads) == len(DETECTORS) and min(heads) == 0, "some are refused"


# --- ADE20K ---------------------------------------------------------------------------------------


@st.composite
def scenes(draw):
    """Generate an image and a label map, sometimes of another size or kind."""
    height, width = draw(sides), draw(sides)
    return {
        "size": (height, width),
        "orientation": draw(st.sampled_from([1, 1, 3, 6, 8])),
        "suffix": draw(st.sampled_from([".jpg", ".png", "16.png"])),
        "seed": draw(colours),
        "labels": draw(st.sampled_from([CLASSES, CLASSES, CLASSES, 1, 0])),
        "fault": draw(st.sampled_from([*[None] * 40, "turned", "label", "colour", "missing"])),
    }


@st.composite
def ade20k_sets(draw):
    return {
        split: draw(st.lists(scenes(), min_size=least, max_size=5))
        for split, least in (("training", BATCH), ("validation", 1))
    }


def write_ade20k(root, splits):
    for split, pairs in splits.items():
        images, maps = root / "images" / split, root / "annotations" / split
        images.mkdir(parents=True)
        maps.mkdir(parents=True)
        for number, pair in enumerate(pairs):
            save(images / f"{number}{pair['suffix']}", pair)
            highest = 200 if pair["fault"] == "label" else pair["labels"]
            draw = np.random.default_rng(pair["seed"])
            labels = draw.integers(0, highest + 1, pair["size"]).astype(np.uint8)
            labels = labels.T if pair["fault"] == "turned" else labels
            label_image = Image.fromarray(labels).convert(
                "RGB" if pair["fault"] == "colour" else "L"
            )
            if pair["fault"] != "missing":
                label_image.save(maps / f"{number}{pair['suffix']}".replace(".jpg", ".png"))
    return {"train": len(splits["training"]), "val": len(splits["validation"])}


def scores(split, folder):
    """Return mIoU and pixel accuracy by a loop over pixels, from files as the server takes them."""
    intersection, union = Counter(), Counter()
    correct = labelled = 0
    for index, pair in enumerate(split.images):
        truth = split.label_map(index)
        with Image.open(folder / f"{pair.image.stem}.png") as file:
            predicted = np.asarray(file).astype(int) - 1
        for true, guess in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
            if true == NO_CLASS:
                continue
            labelled += 1
            correct += true == guess
            intersection[true] += true == guess
            for label in {true, guess}:
                union[label] += 1
    return [
        100 * sum(intersection[c] / n for c, n in union.items()) / len(union),
        100 * correct / labelled,
    ]


def check_ade20k(folder, splits):
    """Train and evaluate on a data set as described above; return whether it was accepted."""
    layout = Layout("smoke", folder / "results", folder)
    root = layout.dataset_root(PROJECT.datasets["ade20k"])
    project = accepted_project(layout, "ade20k", write_ade20k(root, splits), CLASSES)
    if project is None:
        return False
    task, metrics = train_and_evaluate(project, layout, SEGMENTER)
    outputs = layout.evaluation_outputs(Run(experiment=SEGMENTER, seed=0))
    expected = scores(task._val, outputs.predictions)
    assert [metrics["miou"], metrics["pixel_accuracy"]] == pytest.approx(expected, abs=1e-9)
    assert all(math.isfinite(value) for value in metrics.values())
    return True


def train_on_ade20k_sets(tmp_path_factory, count):
    """Check `count` generated data sets; return whether each was accepted."""
    accepted = []

    @given(ade20k_sets())
    @examples(count)
    def check(splits):
        accepted.append(check_ade20k(tmp_path_factory.mktemp("ade20k"), splits))

    check()
    return accepted


def test_valid_ade20k_data_train_with_correct_metrics(tmp_path_factory):
    assert any(train_on_ade20k_sets(tmp_path_factory, QUICK_EXAMPLES))


@pytest.mark.slow
def test_many_random_ade20k_data_sets(tmp_path_factory):
    assert set(train_on_ade20k_sets(tmp_path_factory, SLOW_EXAMPLES)) == {True, False}
