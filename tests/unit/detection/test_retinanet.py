"""RetinaNet: parameters and MACs, losses against loops over all anchors, predictions, training."""

import math

import pytest
import torch

from smt.detection.retinanet import RetinaNetDetector
from smt.models.pyramid import Pyramid
from tests.helpers.dense_scenes import (
    assert_every_parameter_has_a_gradient,
    batch,
    box_ap,
    focal,
    gmacs,
    head,
    iou,
    locations,
    on_meta,
    parameter_count,
    read_predictions,
    scenes,
    small,
    train,
    without_objects,
)
from tests.helpers.params import project_at


def test_parameter_count_equals_the_reference():
    model = on_meta(RetinaNetDetector, "retinanet")
    assert parameter_count(model) == 32_271_540
    assert f"{parameter_count(model.pyramid) / 1e6:.3f}" == "3.770"
    assert f"{parameter_count(model.head) / 1e6:.3f}" == "6.463"


def test_macs_equal_the_reference():
    counts = gmacs(on_meta(RetinaNetDetector, "retinanet"), 800, 1280)
    assert counts == {"pyramid": "13.65", "head": "137.80", "reported": "247.25", "all": "322.3"}


def anchors_of(size):
    """Return the paper's nine anchors per location."""
    anchors = []
    for stride, row, column in locations(size):
        for ratio in (0.5, 1, 2):
            for octave in (0, 1 / 3, 2 / 3):
                side = 4 * stride * 2**octave
                width, height = side / math.sqrt(ratio), side * math.sqrt(ratio)
                x, y = column * stride, row * stride
                anchors.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    return anchors


def match_by_loop(anchors, boxes):
    """Return for each anchor the index of its object, "background" or "ignored"."""
    overlaps = [[iou(box, anchor) for anchor in anchors] for box in boxes]
    matches = []
    for column in zip(*overlaps, strict=True):
        best = max(column)
        unmatched = "background" if best < 0.4 else "ignored"
        matches.append(column.index(best) if best >= 0.5 else unmatched)
    for index, row in enumerate(overlaps):
        for anchor, overlap in enumerate(row):
            if overlap > max(row) - 1e-9:  # an object's best anchors are positive at any IoU
                matches[anchor] = index
    return matches or ["background"] * len(anchors)


def expected_losses(model, images, targets):
    with torch.no_grad():
        maps = model.maps(images)
    class_loss = box_loss = 0.0
    positives = 0
    for index, target in enumerate(targets):
        anchors = anchors_of(target.size)
        matches = match_by_loop(anchors, target.boxes.tolist()) if len(target.boxes) else (
            ["background"] * len(anchors)
        )  # fmt: skip
        logits = read_predictions(maps.classes, index, target.size, 9, 3)
        offsets = read_predictions(maps.boxes, index, target.size, 9, 4)
        for anchor, match, values, offset in zip(anchors, matches, logits, offsets, strict=True):
            if match == "ignored":
                continue
            label = None if match == "background" else int(target.labels[match])
            class_loss += sum(focal(value, c == label, 0.25, 2) for c, value in enumerate(values))
            if match != "background":
                expected = encode(target.boxes[match].tolist(), anchor)
                box_loss += sum(
                    abs(one - other) for one, other in zip(offset, expected, strict=True)
                )
        positives += max(1, sum(isinstance(match, int) for match in matches))
    return {"class": class_loss / positives, "box": box_loss / positives}, positives


def encode(box, anchor):
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return (
        (box[0] + box[2] - anchor[0] - anchor[2]) / 2 / width,
        (box[1] + box[3] - anchor[1] - anchor[3]) / 2 / height,
        math.log((box[2] - box[0]) / width),
        math.log((box[3] - box[1]) / height),
    )


def test_losses_equal_loops_over_all_anchors():
    images, targets = batch()
    model = small(RetinaNetDetector, "retinanet")
    expected, positives = expected_losses(model, images, targets)
    losses = model(images, targets)
    assert positives > 20
    assert list(losses) == ["class", "box"]
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-4), name


def test_without_objects_losses_are_divided_by_the_number_of_images():
    images, targets = batch()
    model = small(RetinaNetDetector, "retinanet")
    expected, positives = expected_losses(model, images, without_objects(targets))
    losses = model(images, without_objects(targets))
    assert positives == 3 and losses["box"] == 0
    assert losses["class"].item() == pytest.approx(expected["class"], rel=1e-4)


@pytest.mark.parametrize("objects", ["some images", "no image", "one image"])
def test_every_parameter_has_a_gradient_for_any_batch(objects):
    images, targets = batch()
    if objects == "no image":
        targets = without_objects(targets)
    if objects == "one image":
        images, targets = images[:1], targets[:1]
    assert_every_parameter_has_a_gradient(small(RetinaNetDetector, "retinanet"), images, targets)


def test_losses_under_autocast_are_close_to_float32():
    images, targets = batch()
    model = small(RetinaNetDetector, "retinanet")
    exact = model(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = assert_every_parameter_has_a_gradient(model, images, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.02)


def test_detections_are_valid_and_inside_the_image():
    images, targets = batch()
    model = small(RetinaNetDetector, "retinanet").eval()
    sizes = [target.size for target in targets]
    with torch.no_grad():
        predictions = model.predict(images, sizes)
    for (height, width), detections in zip(sizes, predictions, strict=True):
        count = len(detections.scores)
        assert count <= 100
        assert detections.boxes.shape == (count, 4) and detections.labels.shape == (count,)
        assert detections.scores.dtype == torch.float32 and detections.labels.dtype == torch.int64
        assert (detections.boxes >= 0).all() and (detections.boxes[:, 0::2] <= width).all()
        assert (detections.boxes[:, 1::2] <= height).all()
        assert (detections.scores.diff() <= 0).all() and (detections.scores > 0.05).all()
        assert set(detections.labels.tolist()) <= {0, 1, 2}
    assert any(
        (detections.boxes[:, 2] == size[1]).any()
        for detections, size in zip(predictions, sizes, strict=True)
    )
    assert sum(len(detections.scores) for detections in predictions) > 20


def test_detections_of_an_image_are_independent_of_the_batch():
    images, targets = batch()
    model = small(RetinaNetDetector, "retinanet").eval()
    sizes = [target.size for target in targets]
    with torch.no_grad():
        batched = model.predict(images, sizes)
        for index, detections in enumerate(batched):
            (single,) = model.predict(images[index : index + 1], sizes[index : index + 1])
            assert torch.equal(detections.labels, single.labels)
            assert detections.boxes.allclose(single.boxes, atol=1e-3)
            assert detections.scores.allclose(single.scores, atol=1e-5)


def detector_on_smt():
    """Return an untrained detector on the demo's SMT-T."""
    torch.manual_seed(0)
    backbone = Pyramid(project_at("demo").models["smt_tiny"], 0.0)
    spec = head("retinanet", channels=32, convolutions=1)
    return RetinaNetDetector(backbone, head=spec, classes=3)


def test_a_few_steps_lower_the_loss():
    images, targets = scenes(2, 64)
    first, *_, last = train(detector_on_smt(), images, targets, steps=8, lr=2e-3)
    assert last < 0.8 * first


@pytest.mark.slow
def test_overfits_eight_images():
    images, targets = scenes(8, 96)
    model = detector_on_smt()
    train(model, images, targets, steps=80, lr=2e-3)
    assert box_ap(model, images, targets) > 0.9
