"""RetinaNet: its size, its losses against loops over all anchors, and that it learns."""

import math

import pytest
import torch

from smt.config.load import load_project
from smt.detection.retinanet import RetinaNetDetector
from smt.models.pyramid import Pyramid
from tests.helpers import ROOT
from tests.helpers.dense_scenes import (
    assert_every_parameter_learns,
    batch,
    box_ap,
    empty,
    focal,
    gmacs,
    head,
    iou,
    on_meta,
    own_places,
    parameters,
    predicted,
    scenes,
    small,
    train,
)


def test_it_has_the_parameters_of_the_reference():
    model = on_meta(RetinaNetDetector, "retinanet")
    assert parameters(model) == 32_271_540
    assert f"{parameters(model.pyramid) / 1e6:.3f}" == "3.770"
    assert f"{parameters(model.head) / 1e6:.3f}" == "6.463"


def test_it_costs_what_the_reference_does():
    counts = gmacs(on_meta(RetinaNetDetector, "retinanet"), 800, 1280)
    assert counts == {"pyramid": "13.65", "head": "137.80", "reported": "247.25", "all": "322.3"}


def anchors_of(size):
    """Return the nine anchors of every place, as the paper has them."""
    anchors = []
    for stride, row, column in own_places(size):
        for ratio in (0.5, 1, 2):
            for octave in (0, 1 / 3, 2 / 3):
                side = 4 * stride * 2**octave
                width, height = side / math.sqrt(ratio), side * math.sqrt(ratio)
                x, y = column * stride, row * stride
                anchors.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    return anchors


def matched(anchors, boxes):
    """Return for each anchor an object, "background" or "neither"."""
    overlaps = [[iou(box, anchor) for anchor in anchors] for box in boxes]
    found = []
    for column in zip(*overlaps, strict=True):
        best = max(column)
        rest = "background" if best < 0.4 else "neither"
        found.append(column.index(best) if best >= 0.5 else rest)
    for index, row in enumerate(overlaps):
        for anchor, overlap in enumerate(row):
            if overlap > max(row) - 1e-9:  # an object's best anchors are its own
                found[anchor] = index
    return found or ["background"] * len(anchors)


def expected_losses(model, images, targets):
    with torch.no_grad():
        maps = model.maps(images)
    classes = boxes = 0.0
    positives = 0
    for index, target in enumerate(targets):
        anchors = anchors_of(target.size)
        matches = matched(anchors, target.boxes.tolist()) if len(target.boxes) else (
            ["background"] * len(anchors)
        )  # fmt: skip
        logits = predicted(maps.classes, index, target.size, 9, 3)
        offsets = predicted(maps.boxes, index, target.size, 9, 4)
        for anchor, match, values, offset in zip(anchors, matches, logits, offsets, strict=True):
            if match == "neither":
                continue
            label = None if match == "background" else int(target.labels[match])
            classes += sum(focal(value, c == label, 0.25, 2) for c, value in enumerate(values))
            if match != "background":
                aim = offsets_to(target.boxes[match].tolist(), anchor)
                boxes += sum(abs(one - other) for one, other in zip(offset, aim, strict=True))
        positives += max(1, sum(isinstance(match, int) for match in matches))
    return {"class": classes / positives, "box": boxes / positives}, positives


def offsets_to(box, anchor):
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return (
        (box[0] + box[2] - anchor[0] - anchor[2]) / 2 / width,
        (box[1] + box[3] - anchor[1] - anchor[3]) / 2 / height,
        math.log((box[2] - box[0]) / width),
        math.log((box[3] - box[1]) / height),
    )


def test_losses_are_those_of_loops_over_all_anchors():
    images, targets = batch()
    model = small(RetinaNetDetector, "retinanet")
    expected, positives = expected_losses(model, images, targets)
    losses = model(images, targets)
    assert positives > 20
    assert list(losses) == ["class", "box"]
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-4), name


def test_losses_without_any_object_are_divided_by_the_images():
    images, targets = batch()
    model = small(RetinaNetDetector, "retinanet")
    expected, positives = expected_losses(model, images, empty(targets))
    losses = model(images, empty(targets))
    assert positives == 3 and losses["box"] == 0
    assert losses["class"].item() == pytest.approx(expected["class"], rel=1e-4)


@pytest.mark.parametrize("of", ["some images", "no image", "one image"])
def test_every_parameter_learns_whatever_the_batch_holds(of):
    images, targets = batch()
    if of == "no image":
        targets = empty(targets)
    if of == "one image":
        images, targets = images[:1], targets[:1]
    assert_every_parameter_learns(small(RetinaNetDetector, "retinanet"), images, targets)


def test_losses_under_autocast_are_those_of_single_precision():
    images, targets = batch()
    model = small(RetinaNetDetector, "retinanet")
    exact = model(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = assert_every_parameter_learns(model, images, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.02)


def test_what_is_found_is_inside_the_image_and_in_the_form_of_detections():
    images, targets = batch()
    model = small(RetinaNetDetector, "retinanet").eval()
    sizes = [each.size for each in targets]
    with torch.no_grad():
        found = model.predict(images, sizes)
    for (height, width), each in zip(sizes, found, strict=True):
        count = len(each.scores)
        assert count <= 100
        assert each.boxes.shape == (count, 4) and each.labels.shape == (count,)
        assert each.scores.dtype == torch.float32 and each.labels.dtype == torch.int64
        assert (each.boxes >= 0).all() and (each.boxes[:, 0::2] <= width).all()
        assert (each.boxes[:, 1::2] <= height).all()
        assert (each.scores.diff() <= 0).all() and (each.scores > 0.05).all()
        assert set(each.labels.tolist()) <= {0, 1, 2}
    assert any((each.boxes[:, 2] == size[1]).any() for each, size in zip(found, sizes, strict=True))
    assert sum(len(each.scores) for each in found) > 20


def test_what_is_found_in_an_image_does_not_depend_on_its_neighbours():
    images, targets = batch()
    model = small(RetinaNetDetector, "retinanet").eval()
    sizes = [each.size for each in targets]
    with torch.no_grad():
        together = model.predict(images, sizes)
        for index, each in enumerate(together):
            (alone,) = model.predict(images[index : index + 1], sizes[index : index + 1])
            assert torch.equal(each.labels, alone.labels)
            assert each.boxes.allclose(alone.boxes, atol=1e-3)
            assert each.scores.allclose(alone.scores, atol=1e-5)


def on_a_pyramid():
    """Return a detector on the demo's SMT-T as it starts."""
    torch.manual_seed(0)
    backbone = Pyramid(load_project(ROOT / "params", "demo").models["smt_tiny"], 0.0)
    spec = head("retinanet", channels=32, convolutions=1)
    return RetinaNetDetector(backbone, head=spec, classes=3)


def test_a_few_steps_lower_the_loss():
    images, targets = scenes(2, 64)
    first, *_, last = train(on_a_pyramid(), images, targets, steps=8, lr=2e-3)
    assert last < 0.8 * first


@pytest.mark.slow
def test_it_learns_eight_images_by_heart():
    images, targets = scenes(8, 96)
    model = on_a_pyramid()
    train(model, images, targets, steps=80, lr=2e-3)
    assert box_ap(model, images, targets) > 0.9
