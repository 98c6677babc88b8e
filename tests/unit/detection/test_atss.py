"""ATSS: parameters and MACs, assignment and losses against loops, predictions and training."""

import math
import statistics

import pytest
import torch
from torch import multiprocessing

from smt.detection.atss import ATSSDetector, centerness
from smt.detection.atss_assigner import assign
from smt.detection.matching import BACKGROUND
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

GROUPS = {"groups": 8}


def test_parameter_count_equals_the_reference():
    model = on_meta(ATSSDetector, "atss")
    assert f"{parameter_count(model) / 1e6:.2f}" == "30.14"
    assert f"{parameter_count(model.pyramid) / 1e6:.3f}" == "3.181"
    # Eight convolutions without bias and their GroupNorms, then 80 classes, a box and centerness,
    # and five scales.
    assert (
        parameter_count(model.head)
        == 8 * (256 * 256 * 9 + 512) + 85 * (256 * 9 + 1) + 5
        == 4_918_618
    )


def test_macs_equal_the_reference():
    counts = gmacs(on_meta(ATSSDetector, "atss"), 800, 1280)
    assert counts == {"pyramid": "13.50", "head": "104.82", "reported": "214.15", "all": "289.1"}


def centre_of(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def assign_by_loop(boxes, levels, candidates):
    """Return the object assigned to each anchor, or -1: algorithm 1 of the paper, in loops."""
    anchors = [anchor for level in levels for anchor in level]
    claims = [{} for _ in anchors]
    for object_index, box in enumerate(boxes):
        nearest, first = [], 0
        for level in levels:
            order = sorted(
                range(len(level)), key=lambda i: math.dist(centre_of(level[i]), centre_of(box))
            )
            nearest += [first + anchor_index for anchor_index in order[:candidates]]
            first += len(level)
        overlaps = {anchor_index: iou(anchors[anchor_index], box) for anchor_index in nearest}
        threshold = statistics.mean(overlaps.values()) + statistics.stdev(overlaps.values())
        for anchor_index, overlap in overlaps.items():
            x, y = centre_of(anchors[anchor_index])
            if overlap >= threshold and min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01:
                claims[anchor_index][object_index] = overlap
    return [max(matches, key=matches.get) if matches else -1 for matches in claims]


def anchors_of(size):
    """Return the anchors by level: one per location, a square with a side of eight strides."""
    levels = {}
    for stride, row, column in locations(size):
        x, y, half = column * stride, row * stride, 4 * stride
        levels.setdefault(stride, []).append((x - half, y - half, x + half, y + half))
    return list(levels.values())


@pytest.mark.parametrize("candidates", [1, 4, 9])
@pytest.mark.parametrize("seed", range(4))
def test_assignment_equals_algorithm_1_of_the_paper(seed, candidates):
    torch.manual_seed(seed)
    levels = anchors_of((256, 384))
    corners = torch.rand(12, 2, dtype=torch.float64) * 160
    sides = 6 * 80 ** torch.rand(12, 1, dtype=torch.float64)  # 6 to 480 pixels
    sides = sides * (0.7 + 0.6 * torch.rand(12, 2, dtype=torch.float64))
    boxes = torch.cat([corners, corners + sides], dim=1)
    expected = assign_by_loop(boxes.tolist(), levels, candidates)
    tensors = [torch.tensor(level, dtype=torch.float64) for level in levels]
    assert assign(boxes, tensors, candidates).tolist() == expected
    assert len(set(expected)) > 5
    assert max(expected[: len(levels[0])]) >= 0 and max(expected[len(levels[0]) :]) >= 0


def square(x, y, half):
    return [x - half, y - half, x + half, y + half]


def test_assignment_of_one_object_by_hand():
    # The IoUs are 1, 9/16 and 0. Mean plus standard deviation is 0.521 + 0.501 = 1.022 > 1, so that
    # no anchor is positive. With two more anchors of IoU 0 it is 0.313 + 0.455 = 0.767.
    box = torch.tensor([square(8.0, 8, 4)])
    level = torch.tensor([square(8, 8, 4), square(8, 8, 3), square(90, 90, 4)])
    assert assign(box, [level], 9).tolist() == [-1, -1, -1]
    far = torch.tensor([square(60, 60, 4), square(70, 70, 4)])
    assert assign(box, [level, far], 9).tolist() == [0, -1, -1, -1, -1]
    # With one candidate per level the IoUs are 1 and 0: 0.5 + 0.707 > 1.
    assert assign(box, [level, far], 1).tolist() == [-1] * 5


def test_an_anchor_positive_for_two_objects_goes_to_the_higher_iou():
    near, far = square(10, 10, 8), square(90, 90, 8)
    level = torch.tensor([near, *[far] * 8])
    first, second = square(10, 10, 6), square(10, 10, 7)  # IoU 0.5625 and 0.766
    assert assign(torch.tensor([first, second]), [level], 9)[0] == 1
    assert assign(torch.tensor([second, first]), [level], 9)[0] == 0
    assert assign(torch.tensor([first, square(90, 90, 7)]), [level], 9)[0] == 0


def test_an_anchor_whose_centre_is_not_inside_the_box_is_negative():
    # The anchor at (8, 8) has the highest IoU. Its centre has to be inside by 0.01 pixels.
    level = torch.tensor([square(8, 8, 4), *[square(90, 90, 4)] * 8])
    for edge, expected in ((8.005, -1), (8.02, 0)):
        assert assign(torch.tensor([[4.0, 4, edge, 12]]), [level], 9)[0] == expected


def test_without_objects_every_anchor_is_background():
    assignment = assign(torch.zeros(0, 4), [torch.rand(5, 4), torch.rand(2, 4)], 9)
    assert assignment.dtype == torch.int64 and assignment.tolist() == [BACKGROUND] * 7


def test_centerness_by_hand():
    boxes = torch.tensor([[0.0, 0, 8, 8]] * 4)
    anchors = torch.tensor([square(4, 4, 9), square(2, 4, 1), square(6, 2, 1), square(7.9, 4, 3)])
    expected = [1, math.sqrt(2 / 6), math.sqrt(2 / 6 * 2 / 6), math.sqrt(0.1 / 7.9)]
    assert centerness(anchors, boxes).tolist() == pytest.approx(expected, abs=1e-5)


def decode(anchor, offsets):
    """Return the box of an anchor and its offsets, which have deviations of .1 .1 .2 .2."""
    x, y = centre_of(anchor)
    side = anchor[2] - anchor[0]
    x, y = x + 0.1 * offsets[0] * side, y + 0.1 * offsets[1] * side
    width, height = side * math.exp(0.2 * offsets[2]), side * math.exp(0.2 * offsets[3])
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def giou(one, other):
    hull = (max(one[2], other[2]) - min(one[0], other[0])) * (
        max(one[3], other[3]) - min(one[1], other[1])
    )
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    union = areas / (1 + iou(one, other))
    return iou(one, other) - (hull - union) / hull


def centerness_by_hand(anchor, box):
    x, y = centre_of(anchor)
    horizontal, vertical = sorted((x - box[0], box[2] - x)), sorted((y - box[1], box[3] - y))
    return math.sqrt(horizontal[0] / horizontal[1] * vertical[0] / vertical[1])


def expected_losses(model, images, targets):
    with torch.no_grad():
        maps = model.maps(images)
    class_loss = box_loss = centerness_loss = weights = 0.0
    positives = 0
    for index, target in enumerate(targets):
        levels = anchors_of(target.size)
        matches = assign_by_loop(target.boxes.tolist(), levels, 9)
        anchors = [anchor for level in levels for anchor in level]
        logits = read_predictions(maps.classes, index, target.size, 1, 3)
        offsets = read_predictions(maps.boxes, index, target.size, 1, 4)
        centerness_logits = read_predictions(maps.centerness, index, target.size, 1, 1)
        for i, (anchor, match) in enumerate(zip(anchors, matches, strict=True)):
            label = None if match < 0 else int(target.labels[match])
            class_loss += sum(
                focal(value, c == label, 0.25, 2) for c, value in enumerate(logits[i])
            )
            if match >= 0:
                box = target.boxes[match].tolist()
                weight = centerness_by_hand(anchor, box)
                box_loss += weight * (1 - giou(decode(anchor, offsets[i]), box))
                weights += weight
                p = 1 / (1 + math.exp(-centerness_logits[i][0]))
                centerness_loss -= weight * math.log(p) + (1 - weight) * math.log(1 - p)
        positives += max(1, sum(match >= 0 for match in matches))
    return {
        "class": class_loss / positives,
        "box": 2 * box_loss / max(weights, 1),
        "centerness": centerness_loss / positives,
    }, positives


def small_detector():
    """Return a small ATSS whose levels have different scales."""
    model = small(ATSSDetector, "atss", **GROUPS)
    with torch.no_grad():
        model.head.scales.copy_(torch.tensor([1.0, 1.5, 0.5, 2, 0.8]))
        model.head.centerness.weight.normal_(std=0.1)
    return model


def test_losses_equal_loops_over_all_anchors():
    images, targets = batch()
    model = small_detector()
    expected, positives = expected_losses(model, images, targets)
    losses = model(images, targets)
    assert positives > 15
    assert list(losses) == ["class", "box", "centerness"]
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-4), name


def test_losses_of_few_positives_are_divided_by_at_least_one():
    images, targets = batch()
    model = small_detector()
    few = [targets[2]] * 2 + [type(targets[0])(torch.tensor([[2.0, 2, 9, 15]]), torch.tensor([1]),
                                               (32, 50))]  # fmt: skip
    expected, positives = expected_losses(model, images, few)
    losses = model(images, few)
    assert positives == 3
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-4), name


def test_without_objects_only_the_class_loss_is_positive():
    images, targets = batch()
    model = small_detector()
    expected, positives = expected_losses(model, images, without_objects(targets))
    losses = model(images, without_objects(targets))
    assert positives == 3 and losses["box"] == 0 and losses["centerness"] == 0
    assert losses["class"].item() == pytest.approx(expected["class"], rel=1e-4)


def test_the_scale_of_a_level_applies_to_its_offsets_only():
    images, _ = batch()
    model = small_detector()
    with torch.no_grad():
        before = model.maps(images)
        model.head.scales[3] *= 3
        after = model.maps(images)
    for level in range(5):
        factor = 3 if level == 3 else 1
        assert after.boxes[level].allclose(factor * before.boxes[level])
        assert torch.equal(after.classes[level], before.classes[level])
        assert torch.equal(after.centerness[level], before.centerness[level])


@pytest.mark.parametrize("objects", ["some images", "no image", "one image"])
def test_every_parameter_has_a_gradient_for_any_batch(objects):
    images, targets = batch()
    if objects == "no image":
        targets = without_objects(targets)
    if objects == "one image":
        images, targets = images[:1], targets[:1]
    assert_every_parameter_has_a_gradient(small_detector(), images, targets)


def test_losses_under_autocast_are_close_to_float32():
    images, targets = batch()
    model = small_detector()
    exact = model(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = assert_every_parameter_has_a_gradient(model, images, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.02)


def write_losses_of_rank(rank, folder):
    """Write the losses of one of two ranks, which has one image of the batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    images, targets = batch()
    losses = small_detector()(images[rank : rank + 1], targets[rank : rank + 1])
    torch.save({name: loss.item() for name, loss in losses.items()}, f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_the_mean_loss_of_two_ranks_equals_that_of_the_whole_batch(tmp_path):
    # Forked: a new process would spend seven seconds on imports.
    multiprocessing.start_processes(
        write_losses_of_rank, (str(tmp_path),), nprocs=2, start_method="fork"
    )
    losses = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    images, targets = batch()
    whole = small_detector()(images[:2], targets[:2])
    for name, loss in whole.items():
        assert losses[0][name] != pytest.approx(losses[1][name], rel=1e-2)
        assert (losses[0][name] + losses[1][name]) / 2 == pytest.approx(loss.item(), rel=1e-4)


def test_detections_are_inside_the_image_and_independent_of_the_batch():
    images, targets = batch()
    model = small_detector().eval()
    sizes = [target.size for target in targets]
    with torch.no_grad():
        batched = model.predict(images, sizes)
        assert sum(len(detections.scores) for detections in batched) > 20
        for index, ((height, width), detections) in enumerate(zip(sizes, batched, strict=True)):
            assert len(detections.scores) <= 100 and (detections.scores.diff() <= 0).all()
            assert (detections.boxes >= 0).all() and (detections.boxes[:, 0::2] <= width).all()
            assert (detections.boxes[:, 1::2] <= height).all()
            (single,) = model.predict(images[index : index + 1], sizes[index : index + 1])
            assert torch.equal(detections.labels, single.labels)
            assert detections.boxes.allclose(single.boxes, atol=1e-3)
            assert detections.scores.allclose(single.scores, atol=1e-5)


def test_the_best_detection_is_an_anchor_decoded_with_its_offsets():
    images, targets = batch()
    model = small_detector().eval()
    size = targets[0].size
    with torch.no_grad():
        maps = model.maps(images[:1])
        (detections,) = model.predict(images[:1], [size])
    anchors = [anchor for level in anchors_of(size) for anchor in level]
    logits = read_predictions(maps.classes, 0, size, 1, 3)
    offsets = read_predictions(maps.boxes, 0, size, 1, 4)
    centerness_logits = read_predictions(maps.centerness, 0, size, 1, 1)
    scores = {
        (anchor, label): 1 / (1 + math.exp(-logit)) / (1 + math.exp(-centerness_logits[anchor][0]))
        for anchor, values in enumerate(logits)
        for label, logit in enumerate(values)
    }
    best, label = max(scores, key=scores.get)
    box = decode(anchors[best], offsets[best])
    clipped = [min(max(side, 0), size[1 - axis % 2]) for axis, side in enumerate(box)]
    assert detections.boxes[0].tolist() == pytest.approx(clipped, abs=1e-3)
    assert detections.labels[0] == label
    assert detections.scores[0].item() == pytest.approx(scores[best, label], rel=1e-4)


def detector_on_smt():
    """Return an untrained detector on the demo's SMT-T."""
    torch.manual_seed(0)
    backbone = Pyramid(project_at("demo").models["smt_tiny"], 0.0)
    spec = head("atss", channels=32, convolutions=1, **GROUPS)
    return ATSSDetector(backbone, head=spec, classes=3)


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
