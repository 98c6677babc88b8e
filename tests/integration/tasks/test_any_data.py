"""Whatever a manifest calls well is trained on and evaluated, and its numbers are right.

Files of annotations and label maps are drawn as people's converters write them: at the edge of
what is valid, and beyond. What is not well is refused in one line; what is well goes through two
steps of every head and an evaluation, whose AP is that of pycocotools, and whose mIoU of a loop.
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
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smt.config.experiments import Run
from smt.config.load import load_project
from smt.datasets import manifest
from smt.datasets.label_maps import NO_CLASS
from smt.engine import optim
from smt.engine.distributed import Ranks
from smt.errors import DataError
from smt.evaluation.coco import PREFIX
from smt.evaluation.predictions import ImageResult, entries, read
from smt.runs.paths import Layout
from smt.tasks.build import build_task
from tests.helpers import ROOT

# pycocotools 2.0 under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

BATCH = 2


def in_small_batches(project):
    """Return a project whose batches a few images fill."""
    small = {"global_batch": BATCH, "device_batch": BATCH}
    recipes = {name: each.model_copy(update=small) for name, each in project.recipes.items()}
    return project.model_copy(update={"recipes": recipes})


PROJECT = in_small_batches(load_project(ROOT / "params", "smoke"))
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


FEW, MANY = 12, 150
"""Data sets that each test draws, and its slow one."""


def examples(count):
    """Let a test draw `count` data sets, the same ones each time."""
    return settings(
        max_examples=count, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


# --- COCO -----------------------------------------------------------------------------------------


@st.composite
def annotations(draw, height, width):
    """Return what a converter may say of an object in an image; its ids come later."""
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
"""What people's files have beyond what is valid."""


@st.composite
def pictures(draw):
    """Return the size of an image, how it is stored, and its objects."""
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
    """Return both splits of a data set, with ids from small to beyond what a float can tell.

    In half of them every annotation has a mask; in every sixth, one annotation has a fault.
    """
    found = {
        split: {
            "pictures": draw(st.lists(pictures(), min_size=least, max_size=6)),
            "first_image": draw(st.sampled_from([0, 1, 7, 2**53])),
            "first_annotation": draw(st.sampled_from([0, 1, 2**53])),
        }
        for split, least in (("train", 3), ("val", 2))
    }
    if draw(st.booleans()):
        for picture in (each for said in found.values() for each in said["pictures"]):
            for entry in picture["objects"]:
                if has_no_area(entry["segmentation"]):
                    height, width = picture["size"]
                    entry["segmentation"] = {"size": [height, width], "counts": [0, height * width]}
    if draw(st.integers(0, 5)) == 0:
        every = [each for said in found.values() for picture in said["pictures"]
                 for each in picture["objects"]]  # fmt: skip
        if every:
            draw(st.sampled_from(FAULTS))(draw(st.sampled_from(every)))
    return found


def save(path, picture):
    """Write an image as it is stored, so that its orientation brings it to its size."""
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


def write_coco(root, found):
    """Write a data set; return how many images it has."""
    (root / "annotations").mkdir(parents=True)
    counts = {}
    for split, said in found.items():
        folder = root / f"{split}2017"
        folder.mkdir()
        images, objects = [], []
        for number, picture in enumerate(said["pictures"]):
            id_ = said["first_image"] + number
            name = f"{number} ü{picture['suffix']}"
            save(folder / name, picture)
            height, width = picture["size"]
            images.append({"id": id_, "file_name": name, "height": height, "width": width})
            objects += [{**each, "image_id": id_} for each in picture["objects"]]
        for number, each in enumerate(objects):
            each["id"] = said["first_annotation"] + number
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


def accepted(layout, name, counts, classes):
    """Return the project with a data set that the manifest calls well, or None.

    As a user would, it takes the number of images that are trained on from what is refused.
    """
    for _ in range(2):
        project = project_with(name, counts, classes)
        try:
            manifest.write(project, layout, name)
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
    """Return results for some images of a split that find what is there, more or less."""
    draw = np.random.default_rng(0)
    for index in range(len(split)):
        there, image = split.annotation(index), split.images[index]
        if draw.random() < 0.2:
            continue
        corners = there.boxes + draw.normal(0, 1, there.boxes.shape)
        boxes = np.concatenate([corners[:, :2], (corners[:, 2:] - corners[:, :2]).clip(0)], axis=1)
        masks = split.masks(index).astype(np.uint8) if with_masks else []
        yield ImageResult(
            image.id, (image.height, image.width), tuple(map(tuple, boxes.tolist())),
            tuple(np.round(draw.random(len(boxes)), 1).tolist()),
            tuple(split.category_ids[label] for label in there.labels),
            tuple(rle.encode(np.asfortranarray(each))["counts"].decode() for each in masks)
            if with_masks else None,
        )  # fmt: skip


def average_precision(path, results, kind):
    """Return AP, AP50 and AP75 by pycocotools, of annotations whose ids are counted from 1."""
    said = json.loads(path.read_text())
    number = {each["id"]: n for n, each in enumerate(said["images"], 1)}
    for each in said["images"]:
        each["id"] = number[each["id"]]
    for each in said["categories"]:
        each["id"] += 1
    for n, each in enumerate(said["annotations"], 1):
        each.update(id=n, image_id=number[each["image_id"]], category_id=each["category_id"] + 1)
    found = [
        {**each, "image_id": number[each["image_id"]], "category_id": each["category_id"] + 1}
        for each in results
    ]
    if not found:
        return [0.0, 0.0, 0.0]
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = said
        truth.createIndex()
        measured = COCOeval(truth, truth.loadRes(found), kind)
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return [100 * value for value in measured.stats[:3]]


def require_right_figures(metrics, path, results, kinds):
    for kind in kinds:
        wanted = average_precision(path, entries(results, kind), kind)
        names = [f"{PREFIX[kind]}_ap{suffix}" for suffix in ("", "50", "75")]
        assert [metrics.get(name, -100) for name in names] == pytest.approx(wanted, abs=1e-9)


def check_coco(folder, found):
    """Do with a data set all that the text above says; return how many heads were trained."""
    layout = Layout("smoke", folder / "results", folder)
    root = layout.dataset_root(PROJECT.datasets["coco"])
    project = accepted(layout, "coco", write_coco(root, found), CLASSES)
    trained = 0
    for experiment, spec in DETECTORS.items() if project else ():
        try:
            task, metrics = train_and_evaluate(project, layout, experiment)
        except DataError as error:
            assert "and this head predicts masks" in str(error) and "mask_rcnn" in spec.head
            continue
        split, kinds = task._val, task._kinds
        outputs = layout.evaluation_outputs(Run(experiment=experiment, seed=0))
        sizes = {each.id: (each.height, each.width) for each in split.images}
        results = read(outputs.predictions, sizes, split.category_ids)
        require_right_figures(metrics, split.annotation_file, results, kinds)
        results = list(near_the_truth(split, "segm" in kinds))
        metrics = task.average_precision(results)
        require_right_figures(metrics, split.annotation_file, results, kinds)
        trained += 1
    return trained


@given(coco_sets())
@examples(FEW)
def test_what_is_well_in_coco_trains_every_head_and_is_measured_rightly(tmp_path_factory, found):
    event(f"{check_coco(tmp_path_factory.mktemp('coco'), found)} heads")


@pytest.mark.slow
@given(coco_sets())
@examples(MANY)
def test_many_data_sets_in_the_layout_of_coco(tmp_path_factory, found):
    event(f"{check_coco(tmp_path_factory.mktemp('coco'), found)} heads")


# --- ADE20K ---------------------------------------------------------------------------------------


@st.composite
def scenes(draw):
    """Return an image and a label map, which is of another size or kind now and then."""
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


def write_ade20k(root, found):
    for split, pairs in found.items():
        images, maps = root / "images" / split, root / "annotations" / split
        images.mkdir(parents=True)
        maps.mkdir(parents=True)
        for number, pair in enumerate(pairs):
            save(images / f"{number}{pair['suffix']}", pair)
            highest = 200 if pair["fault"] == "label" else pair["labels"]
            draw = np.random.default_rng(pair["seed"])
            labels = draw.integers(0, highest + 1, pair["size"]).astype(np.uint8)
            labels = labels.T if pair["fault"] == "turned" else labels
            drawn = Image.fromarray(labels).convert("RGB" if pair["fault"] == "colour" else "L")
            if pair["fault"] != "missing":
                drawn.save(maps / f"{number}{pair['suffix']}".replace(".jpg", ".png"))
    return {"train": len(found["training"]), "val": len(found["validation"])}


def scores(split, folder):
    """Return mIoU and pixel accuracy of predictions, pixel by pixel; files are as the server's."""
    both, either = Counter(), Counter()
    right = known = 0
    for index, pair in enumerate(split.images):
        truth = split.label_map(index)
        with Image.open(folder / f"{pair.image.stem}.png") as file:
            predicted = np.asarray(file).astype(int) - 1
        for true, guess in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
            if true == NO_CLASS:
                continue
            known += 1
            right += true == guess
            both[true] += true == guess
            for label in {true, guess}:
                either[label] += 1
    return [100 * sum(both[c] / n for c, n in either.items()) / len(either), 100 * right / known]


def check_ade20k(folder, found):
    """Do with a data set all that the text above says; return whether it was called well."""
    layout = Layout("smoke", folder / "results", folder)
    root = layout.dataset_root(PROJECT.datasets["ade20k"])
    project = accepted(layout, "ade20k", write_ade20k(root, found), CLASSES)
    if project is None:
        return False
    task, metrics = train_and_evaluate(project, layout, SEGMENTER)
    outputs = layout.evaluation_outputs(Run(experiment=SEGMENTER, seed=0))
    wanted = scores(task._val, outputs.predictions)
    assert [metrics["miou"], metrics["pixel_accuracy"]] == pytest.approx(wanted, abs=1e-9)
    assert all(math.isfinite(value) for value in metrics.values())
    return True


@given(ade20k_sets())
@examples(FEW)
def test_what_is_well_in_ade20k_is_trained_on_and_measured_rightly(tmp_path_factory, found):
    event("well" if check_ade20k(tmp_path_factory.mktemp("ade20k"), found) else "refused")


@pytest.mark.slow
@given(ade20k_sets())
@examples(MANY)
def test_many_data_sets_in_the_layout_of_ade20k(tmp_path_factory, found):
    event("well" if check_ade20k(tmp_path_factory.mktemp("ade20k"), found) else "refused")
