"""Detections become COCO's results; files of them are read back, or rejected in one line."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from smt.detection.paste import paste
from smt.detection.structures import Detections
from smt.errors import DataError
from smt.evaluation import predictions as module
from smt.evaluation.predictions import (
    ImageResult,
    _pixels_covered,
    entries,
    image_result,
    read,
    write,
)

# pycocotools 2.0 under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

CATEGORIES = (1, 2, 90)


def make_detections(boxes, scores, labels, masks=None):
    return Detections(
        torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64), masks
    )


def at_original_size(detections, image_id=7, input_size=(80, 100), size=(40, 25)):
    return image_result(
        detections,
        image_id,
        input_size=input_size,
        size=size,
        categories=CATEGORIES,
        mask_threshold=0.5,
    )


def test_each_axis_is_scaled_by_its_own_ratio_and_labels_become_ids():
    # Twice as high and four times as wide as on disk.
    detections = make_detections(
        [[10.0, 20.0, 50.0, 70.0], [0.0, 0.0, 100.0, 80.0]], [0.75, 0.5], [2, 0]
    )
    assert at_original_size(detections) == ImageResult(
        7,
        (40, 25),
        boxes=((2.5, 10.0, 10.0, 25.0), (0.0, 0.0, 25.0, 40.0)),
        scores=(0.75, 0.5),
        categories=(90, 1),
        masks=None,
    )


def test_boxes_are_clipped_to_the_image():
    detections = make_detections(
        [[-8.0, -6.0, 120.0, 10.0], [90.0, 70.0, 100.4, 99.0]], [0.9, 0.8], [0, 0]
    )
    assert at_original_size(detections).boxes == ((0.0, 0.0, 25.0, 5.0), (22.5, 35.0, 2.5, 5.0))


def test_detections_with_nan_or_infinite_values_are_left_out():
    nan, inf = float("nan"), float("inf")
    boxes = [
        [1.0, 1.0, 2.0, 2.0],
        [nan, 1.0, 2.0, 2.0],
        [0.0, 0.0, inf, 9.0],
        [8.0, 8.0, 12.0, 9.0],
    ]
    masks = torch.rand(4, 5, 5)
    detections = make_detections(boxes, [nan, 0.9, 0.8, 0.7], [0, 1, 2, 1], masks)
    result = at_original_size(detections)
    assert result.boxes == ((2.0, 4.0, 1.0, 0.5),)
    assert result.scores == (pytest.approx(0.7),) and result.categories == (2,)
    assert len(result.masks) == 1


@pytest.mark.parametrize("pasted", [1, 3 * 40 * 25, 10**9])
def test_masks_are_pasted_at_the_size_of_the_image_on_disk(monkeypatch, pasted):
    monkeypatch.setattr(module, "MAX_PASTED", pasted)
    torch.manual_seed(0)
    corners = torch.rand(7, 2) * torch.tensor([60.0, 40.0])
    boxes = torch.cat([corners, corners + 10 + 30 * torch.rand(7, 2)], dim=1)
    masks = torch.rand(7, 6, 6)
    result = at_original_size(
        Detections(boxes, torch.linspace(0.9, 0.1, 7), torch.zeros(7, dtype=torch.int64), masks)
    )
    shrunk = boxes / torch.tensor([4.0, 2.0, 4.0, 2.0])
    expected = paste(masks, shrunk, (40, 25), 0.5).numpy()
    decoded = [rle.decode({"size": [40, 25], "counts": counts.encode()}) for counts in result.masks]
    assert (np.stack(decoded) == expected).all() and expected.any((1, 2)).all()


def test_no_detections_give_no_boxes_and_no_masks():
    nothing = Detections(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 28, 28)
    )
    assert at_original_size(nothing) == ImageResult(7, (40, 25), (), (), (), ())


def test_a_pickled_result_is_small_and_has_no_tensors():
    detections = make_detections([[1.0, 1.0, 30.0, 30.0]] * 100, [0.5] * 100, [0] * 100)
    pickled = pickle.dumps(at_original_size(detections))
    assert len(pickled) < 100 * 80 and b"torch" not in pickled


def some_results():
    """Return results of images 9, 3 and 5, the last of which is empty."""
    generator = np.random.default_rng(0)
    results = []
    for image, size, count in ((9, (30, 20), 4), (3, (12, 40), 3), (5, (8, 8), 0)):
        pixels = generator.random((count, *size)) > 0.7
        encoded = [rle.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in pixels]
        results.append(
            ImageResult(
                image,
                size,
                tuple(tuple(box) for box in generator.uniform(0, 20, (count, 4)).tolist()),
                tuple(sorted(generator.random(count).tolist(), reverse=True)),
                tuple(generator.choice(CATEGORIES, count).tolist()),
                tuple(mask["counts"].decode() for mask in encoded),
            )
        )
    return results


SIZES = {9: (30, 20), 3: (12, 40), 5: (8, 8), 11: (9, 9)}


def read_back(folder):
    return read(folder, SIZES, CATEGORIES)


def test_the_files_have_the_format_of_cocos_test_server(tmp_path):
    results = some_results()
    paths = write(tmp_path, results, ("bbox", "segm"))
    assert [path.name for path in paths] == ["detections_bbox.json", "detections_segm.json"]
    boxes, masks = (json.loads(path.read_text()) for path in paths)
    assert [entry["image_id"] for entry in boxes] == [3, 3, 3, 9, 9, 9, 9]
    assert {frozenset(entry) for entry in boxes} == {
        frozenset({"image_id", "category_id", "bbox", "score"})
    }
    # With a box as well, COCO's tools would take areas from the boxes.
    assert {frozenset(entry) for entry in masks} == {
        frozenset({"image_id", "category_id", "segmentation", "score"})
    }
    assert boxes[3]["bbox"] == list(results[0].boxes[0])
    assert masks[3]["segmentation"] == {"size": [30, 20], "counts": results[0].masks[0]}
    assert [entry["score"] for entry in boxes[3:]] == list(results[0].scores)  # best first


def test_the_bytes_do_not_depend_on_the_order_of_images(tmp_path):
    results = some_results()
    one = [path.read_bytes() for path in write(tmp_path / "a", results, ("bbox", "segm"))]
    two = [path.read_bytes() for path in write(tmp_path / "b", results[::-1], ("bbox", "segm"))]
    assert one == two


def test_results_round_trip_through_files(tmp_path):
    results = some_results()
    write(tmp_path, results, ("bbox", "segm"))
    assert read_back(tmp_path) == [results[1], results[0]]  # by id; 5 has no detections


def test_a_detector_of_boxes_has_one_file(tmp_path):
    results = [ImageResult(9, (30, 20), ((1.0, 2.0, 3.0, 4.0),), (0.5,), (90,), None)]
    assert len(write(tmp_path, results, ("bbox",))) == 1
    assert read_back(tmp_path) == results
    with pytest.raises(ValueError, match="image 9: no masks"):
        list(entries(results, "segm"))


def test_no_detections_at_all_is_an_empty_list(tmp_path):
    for path in write(tmp_path, [], ("bbox", "segm")):
        assert json.loads(path.read_text()) == []
    assert read_back(tmp_path) == []


def change(tmp_path, name, **changes):
    """Change the second entry of a file; a key whose change is None is removed."""
    write(tmp_path, some_results(), ("bbox", "segm"))
    path = tmp_path / f"detections_{name}.json"
    objects = json.loads(path.read_text())
    objects[1] = {
        key: value for key, value in {**objects[1], **changes}.items() if value is not None
    }
    path.write_text(json.dumps(objects))
    return path


def assert_refused(path, problem):
    with pytest.raises(DataError, match=re.escape(problem)) as error:
        read_back(path.parent)
    assert str(path.parent) in str(error.value) and "\n" not in str(error.value)
    assert "evaluate the run again" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"image_id": 4}, "entry 2: image_id 4 is none of the 4 images"),
        ({"image_id": None}, "entry 2: image_id None"),
        ({"category_id": 3}, "entry 2: category_id 3 does not exist; valid: 1, 2, 90"),
        ({"category_id": "1"}, "entry 2: category_id '1'"),
        ({"score": "0.5"}, "entry 2: score '0.5' is no number"),
        ({"score": float("nan")}, "entry 2: score nan"),
        ({"bbox": [1, 2, 3]}, "entry 2: no valid bbox: [1, 2, 3]"),
        ({"bbox": [1, 2, 3, -4]}, "entry 2: no valid bbox"),
        ({"bbox": [1, 2, 3, float("inf")]}, "entry 2: no valid bbox"),
        ({"bbox": None}, "entry 2: no valid bbox: None"),
    ],
)
def test_an_invalid_box_entry_is_named(tmp_path, changes, problem):
    assert_refused(change(tmp_path, "bbox", **changes), problem)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [40, 12], "counts": "P?0"},  # of another image
        {"size": [12, 40]},
        {"size": [12, 40], "counts": [480]},
        {"size": [12, 40], "counts": "zz"},  # ends before the image does
        {"size": [12, 40], "counts": "o"},  # goes on after its end
        {"size": [12, 40], "counts": "é0"},
        {"size": [12, 40], "counts": ""},
        [[1, 1, 5, 1, 5, 5]],
        None,
    ],
)
def test_an_invalid_mask_entry_is_named(tmp_path, segmentation):
    path = change(tmp_path, "segm", segmentation=segmentation)
    assert_refused(path, "entry 2: no valid segmentation")


def test_masks_of_other_objects_than_the_boxes_are_refused(tmp_path):
    path = change(tmp_path, "segm", score=0.123)
    assert_refused(path, "entry 2 of detections_segm.json is another object")
    objects = json.loads(path.read_text())
    path.write_text(json.dumps(objects[:-1]))
    assert_refused(path, "7 objects in detections_bbox.json, 6 in detections_segm.json")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b'[\n{"image_id":3,"category_id":1,"bb', "cut off, or not JSON"),
        (b"", "cut off, or not JSON"),
        (b"\xff\xfe", "cut off, or not JSON"),
        (b'{"annotations": []}', "expected a list"),
        (b"[3]", "entry 1: expected an object"),
    ],
)
@pytest.mark.parametrize("name", ["bbox", "segm"])
def test_an_invalid_file_is_one_line(tmp_path, name, content, problem):
    write(tmp_path, some_results(), ("bbox", "segm"))
    path = tmp_path / f"detections_{name}.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    elif name == "segm":
        assert [result.masks for result in read_back(tmp_path)] == [None, None]
        return
    assert_refused(path, problem)


def test_run_lengths_cover_every_pixel_of_the_image():
    generator = np.random.default_rng(1)
    for density in (0, 0.001, 0.1, 0.5, 1):
        for size in ((1, 1), (1, 7), (480, 640), (1200, 1100)):
            pixels = np.asfortranarray((generator.random(size) < density).astype(np.uint8))
            assert _pixels_covered(rle.encode(pixels)["counts"].decode()) == size[0] * size[1]
    # 2, -3: runs are no less than nothing; 3 numbers, then a difference that leads below it.
    assert _pixels_covered("2M") is None
    assert _pixels_covered("2222") == 2 + 2 + 2 + 4
    assert _pixels_covered("222M") is None
    assert _pixels_covered("oooooooo0") is None
