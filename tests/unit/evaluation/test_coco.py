"""AP and AR equal those of pycocotools but for rounding, for any order of images."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from smt.errors import DataError
from smt.evaluation.coco import evaluate, evaluations, per_class
from smt.evaluation.predictions import ImageResult, entries

# pycocotools 2.0 under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

CLASSES = {1: "cat", 3: "dog", 7: "bird", 90: "never annotated"}
NAMES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""In the order of pycocotools."""
PREFIX = {"bbox": "box", "segm": "mask"}
ROUNDING = 1e-12
"""In percent: pycocotools adds 2e-16 to the denominator of each precision."""


def ellipse(size, box):
    """Return the pixels (h, w) uint8 of the ellipse in a box x, y, width, height."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    x, y, width, height = box
    inside = ((columns - x) * 2 / width - 1) ** 2 + ((rows - y) * 2 / height - 1) ** 2 <= 1
    return np.asfortranarray(inside.astype(np.uint8))


def polygons(box):
    """Return the two triangles that a box's diagonal and a gap beside it leave."""
    x, y, width, height = box
    right, bottom = x + width, y + height
    gap = 0.1 * width
    return [
        [x, y, right - gap, y, x, bottom],
        [right, y, right, bottom, x + gap, bottom],
    ]


def make_annotation(generator, number, image, size):
    """Return a random annotation; every fifth is a crowd, every fourth an ellipse."""
    height, width = size
    sides = generator.uniform(4, [0.9 * width, 0.9 * height])
    corner = generator.uniform(0, [width, height] - sides)
    box = [*corner.tolist(), *sides.tolist()]
    crowd = int(number % 5 == 0)
    if crowd or number % 4 == 0:
        encoded = rle.encode(ellipse(size, box))
        area = float(rle.area(encoded))
        segmentation = {"size": list(size), "counts": encoded["counts"].decode()}
        if crowd:  # COCO has crowds as plain lists of runs
            pixels = rle.decode(encoded).flatten(order="F").astype(int)
            edges = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
            runs = np.diff([0, *edges, pixels.size]).tolist()
            segmentation["counts"] = runs
    else:
        segmentation = polygons(box)
        area = float(rle.area(rle.merge(rle.frPyObjects(segmentation, *size))))
    return {
        "id": number, "image_id": image, "category_id": (1, 3, 7)[number % 3], "bbox": box,
        "area": area, "iscrowd": crowd, "segmentation": segmentation,
    }  # fmt: skip


def detections_near(generator, image, size, objects, background):
    """Return detections near objects, then `background` ones anywhere; many scores are equal."""
    height, width = size
    rows = []
    for annotation in objects:
        for spread in (0.02, 0.1, 0.3):
            x, y, w, h = annotation["bbox"]
            shift = generator.normal(0, spread, 4) * [w, h, w, h]
            rows.append((np.array([x, y, w, h]) + shift, annotation["category_id"]))
    for _ in range(background):
        corner = generator.uniform(0, [0.8 * width, 0.8 * height])
        sides = generator.uniform(3, [0.2 * width, 0.2 * height])
        rows.append((np.array([*corner, *sides]), int(generator.choice(list(CLASSES)))))
    scores = np.round(generator.uniform(0.05, 1, len(rows)), 1)
    order = np.argsort(-scores, kind="stable").tolist()
    boxes = [tuple(np.maximum(rows[index][0], [0, 0, 1, 1]).tolist()) for index in order]
    masks = [rle.encode(ellipse(size, box))["counts"].decode() for box in boxes]
    return ImageResult(
        image, size, tuple(boxes), tuple(scores[order].tolist()),
        tuple(rows[index][1] for index in order), tuple(masks),
    )  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Return a file of annotations and results for its images.

    Image 50 has no object, 40 no detection, 31 no result, and 20 more than 100 detections of a
    class.
    """
    generator = np.random.default_rng(3)
    images, annotations, results = [], [], []
    for image in (50, 40, 31, 20, *range(100, 112)):
        size = (int(generator.integers(110, 190)), int(generator.integers(120, 200)))
        images.append({"id": image, "height": size[0], "width": size[1], "file_name": f"{image}"})
        count = 0 if image == 50 else int(generator.integers(2, 9))
        first = len(annotations) + 1
        objects = [make_annotation(generator, first + index, image, size) for index in range(count)]
        annotations += objects
        extra = 450 if image == 20 else 12
        if image != 31:
            empty = image == 40
            results.append(
                detections_near(
                    generator, image, size, [] if empty else objects, 0 if empty else extra
                )
            )
    path = tmp_path_factory.mktemp("coco") / "instances.json"
    categories = [{"id": category, "name": name} for category, name in CLASSES.items()]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path, results


def reference(path, results, kind, image_ids=None):
    """Return pycocotools' twelve figures and its AP of each class, in percent; -1 for none."""
    truth, detections = COCO(str(path)), list(entries(results, kind))
    if detections:
        detected = truth.loadRes(detections)
    else:  # pycocotools cannot load an empty list
        detected = COCO()
        detected.dataset = {**truth.dataset, "annotations": []}
        detected.createIndex()
    evaluator = COCOeval(truth, detected, kind)
    if image_ids is not None:
        evaluator.params.imgIds = image_ids
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    classes = {}
    for index, category in enumerate(evaluator.params.catIds):
        precision = evaluator.eval["precision"][:, :, index, 0, 2]
        precision = precision[precision > -1]
        classes[CLASSES[category]] = 100 * precision.mean() if precision.size else -1.0
    return [100 * value if value > -1 else -1.0 for value in evaluator.stats.tolist()], classes


def assert_equal_to_the_reference(path, results, image_ids=None):
    metrics = evaluate(path, results, ("bbox", "segm"), image_ids)
    for kind, prefix in PREFIX.items():
        figures, classes = reference(path, results, kind, image_ids)
        actual = [metrics.get(f"{prefix}_{name}", -1.0) for name in NAMES]
        assert actual == pytest.approx(figures, rel=0, abs=ROUNDING)
        of_classes = per_class(path, results, kind, image_ids)
        of_classes = {name: of_classes.get(name, -1.0) for name in CLASSES.values()}
        assert of_classes == pytest.approx(classes, rel=0, abs=ROUNDING)
    return metrics


def test_all_metrics_equal_pycocotools(scenes):
    path, results = scenes
    ours = assert_equal_to_the_reference(path, results)
    assert len(ours) == 24 and len(set(ours.values())) == 24
    assert all(0 < value < 100 for value in ours.values())


def test_ids_beyond_2_to_the_53_give_the_same_metrics(scenes, tmp_path):
    """From 2^53 on neighbours are one floating-point number, and an object of id 0 is no match."""
    path, results = scenes
    expected = evaluate(path, results)
    annotations = json.loads(path.read_text())
    large_ids = {entry["id"]: 2**53 + entry["id"] for entry in annotations["images"]}
    for entry in annotations["images"]:
        entry["id"] = large_ids[entry["id"]]
    for number, entry in enumerate(annotations["annotations"]):
        entry.update(id=number, image_id=large_ids[entry["image_id"]])
    (tmp_path / "far.json").write_text(json.dumps(annotations))
    moved = [replace(entry, image_id=large_ids[entry.image_id]) for entry in results]
    assert evaluate(tmp_path / "far.json", moved) == expected


def test_objects_without_a_mask_are_evaluated_by_their_boxes(scenes, tmp_path):
    path, results = scenes
    annotations = json.loads(path.read_text())
    for number, annotation in enumerate(annotations["annotations"]):
        annotation["segmentation"] = []
        if number % 2:
            del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(annotations))
    metrics = evaluate(tmp_path / "boxes.json", results, kinds=("bbox",))
    assert metrics == evaluate(path, results, kinds=("bbox",))


def test_a_subset_of_images_can_be_evaluated(scenes):
    path, results = scenes
    all_images = evaluate(path, results)
    for image_ids in ([20, 31, 40, 50], [103, 101], [31], [50]):
        ours = assert_equal_to_the_reference(path, results, image_ids)
        assert ours != all_images
    assert evaluate(path, results, image_ids=[50]) == {}  # no ground truth


def test_without_detections_every_metric_is_zero(scenes):
    path, results = scenes
    empty = [ImageResult(result.image_id, result.size, (), (), (), ()) for result in results]
    for nothing in (empty, []):
        ours = assert_equal_to_the_reference(path, nothing)
        assert len(ours) == 24 and set(ours.values()) == {0.0}


def test_metrics_without_ground_truth_are_left_out(scenes, tmp_path):
    path, results = scenes
    annotations = json.loads(path.read_text())
    large = [annotation for annotation in annotations["annotations"] if annotation["area"] > 96**2]
    assert {annotation["iscrowd"] for annotation in large} == {0, 1}
    only_large = tmp_path / "large.json"
    only_large.write_text(json.dumps({**annotations, "annotations": large}))
    ours = assert_equal_to_the_reference(only_large, results)
    assert {name for name in ours if "small" in name or "medium" in name} == set()
    assert ours["box_ar_large"] == ours["box_ar100"] > 0
    assert (
        ours["box_ap_large"] > ours["box_ap"]
    )  # small detections are not false positives among large

    nothing = tmp_path / "nothing.json"
    crowds = [annotation for annotation in large if annotation["iscrowd"]]
    for some in (crowds, []):
        nothing.write_text(json.dumps({**annotations, "annotations": some}))
        assert evaluate(nothing, results) == {}
        assert per_class(nothing, results, "bbox") == {}


def test_a_class_without_objects_is_left_out_of_the_mean(scenes):
    path, results = scenes
    aps = per_class(path, results, "bbox")
    assert set(aps) == {"cat", "dog", "bird"}
    assert np.mean(list(aps.values())) == pytest.approx(evaluate(path, results)["box_ap"])


def test_metrics_do_not_depend_on_the_order_of_images_or_on_processes(scenes):
    path, results = scenes
    expected = evaluate(path, results)
    generator = np.random.default_rng(0)
    for processes in (1, 2, 5):
        order = generator.permutation(len(results)).tolist()
        parts = [
            pickle.loads(pickle.dumps([results[index] for index in order[rank::processes]]))
            for rank in range(processes)
        ]
        assert evaluate(path, (result for part in parts for result in part)) == expected


def test_object_sizes_are_the_annotated_areas_not_those_of_the_boxes(tmp_path):
    # A thin frame around a large box: COCO says 1000 pixels.
    box = (0.0, 0.0, 100.0, 100.0)
    annotation = {
        "id": 1, "image_id": 5, "category_id": 1, "bbox": box, "area": 1000, "iscrowd": 0,
        "segmentation": [[0, 0, 100, 0, 100, 100, 0, 100]],
    }  # fmt: skip
    path = tmp_path / "frame.json"
    image = {"id": 5, "height": 120, "width": 120}
    category = {"id": 1, "name": "frame"}
    path.write_text(
        json.dumps({"images": [image], "annotations": [annotation], "categories": [category]})
    )
    result = ImageResult(5, (120, 120), (box,), (0.5,), (1,), None)
    ours = evaluate(path, [result], ("bbox",))
    assert ours["box_ap_small"] == 100 and "box_ap_large" not in ours
    # A second detection, of IoU 1, is a false positive up to IoU 0.7, where the first one matches.
    # Above 0.7 the first one is a false positive, and the precision is 1/2.
    first = (0.0, 0.0, 100.0, 72.0)  # IoU 0.72: matches at 5 of 10 thresholds, 0.5 to 0.7
    two = ImageResult(5, (120, 120), (first, box), (0.9, 0.5), (1, 1), None)
    ours = evaluate(path, [two], ("bbox",))
    assert ours["box_ap"] == pytest.approx(75) and ours["box_ar100"] == 100
    assert ours["box_ap50"] == 100 and ours["box_ap75"] == 50 and ours["box_ar1"] == 50


def test_evaluations_have_precision_and_recall_curves(scenes):
    path, results = scenes
    evaluation = evaluations(path, results, ("segm",))
    assert list(evaluation) == ["segm"]
    assert evaluation["segm"].precision.shape == (10, 101, 4, 4, 3)
    assert evaluation["segm"].recall.shape == (10, 4, 4, 3)


def test_nothing_is_printed(scenes, capfd, caplog):
    path, results = scenes
    with caplog.at_level("INFO"):
        evaluate(path, results)
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_unknown_images_missing_masks_and_duplicate_results_are_errors(scenes, tmp_path):
    path, results = scenes
    with pytest.raises(ValueError, match="two results"):
        evaluate(path, [*results, results[0]])
    boxes = [ImageResult(20, (9, 9), ((0.0, 0.0, 1.0, 1.0),), (1.0,), (1,), None)]
    with pytest.raises(ValueError, match="image 20: no masks"):
        evaluate(path, boxes)
    assert set(evaluate(path, boxes, ("bbox",)))
    with pytest.raises(DataError, match="no image 77"):
        evaluate(path, [ImageResult(77, (9, 9), (), (), (), ())])
    with pytest.raises(DataError, match="no image 78"):
        evaluate(path, results, image_ids=[20, 78])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b'{"images": [], "annot', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "missing list images"),
        (b'{"images": [], "categories": []}', "missing list annotations"),
    ],
)
def test_an_invalid_annotation_file_is_one_line(tmp_path, content, problem):
    path = tmp_path / "instances.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as error:
        evaluate(path, [])
    assert str(path) in str(error.value) and "\n" not in str(error.value)
