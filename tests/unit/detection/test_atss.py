"""ATSS: its size, its assignment and losses against loops, and that it learns."""

import math
import statistics

import pytest
import torch
from torch import multiprocessing

from smt.config.load import load_project
from smt.detection.atss import ATSSDetector, centerness
from smt.detection.atss_assigner import assign
from smt.detection.matching import BACKGROUND
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

GROUPS = {"groups": 8}


def test_it_has_the_parameters_of_the_reference():
    model = on_meta(ATSSDetector, "atss")
    assert f"{parameters(model) / 1e6:.2f}" == "30.14"
    assert f"{parameters(model.pyramid) / 1e6:.3f}" == "3.181"
    # Eight convolutions without bias and their GroupNorms, then 80 classes, a box and centerness,
    # and five scales.
    assert parameters(model.head) == 8 * (256 * 256 * 9 + 512) + 85 * (256 * 9 + 1) + 5 == 4_918_618


def test_it_costs_what_the_reference_does():
    counts = gmacs(on_meta(ATSSDetector, "atss"), 800, 1280)
    assert counts == {"pyramid": "13.50", "head": "104.82", "reported": "214.15", "all": "289.1"}


def middle(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def assigned(boxes, levels, candidates):
    """Return the object of each anchor, or -1: the paper's algorithm 1, object by object."""
    anchors = [anchor for level in levels for anchor in level]
    claims = [{} for _ in anchors]
    for index, box in enumerate(boxes):
        near, first = [], 0
        for level in levels:
            order = sorted(
                range(len(level)), key=lambda i: math.dist(middle(level[i]), middle(box))
            )
            near += [first + each for each in order[:candidates]]
            first += len(level)
        overlaps = {each: iou(anchors[each], box) for each in near}
        bound = statistics.mean(overlaps.values()) + statistics.stdev(overlaps.values())
        for each, overlap in overlaps.items():
            x, y = middle(anchors[each])
            if overlap >= bound and min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01:
                claims[each][index] = overlap
    return [max(each, key=each.get) if each else -1 for each in claims]


def anchors_of(size):
    """Return the anchor of every place by level: eight strides wide and high."""
    levels = {}
    for stride, row, column in own_places(size):
        x, y, half = column * stride, row * stride, 4 * stride
        levels.setdefault(stride, []).append((x - half, y - half, x + half, y + half))
    return list(levels.values())


@pytest.mark.parametrize("candidates", [1, 4, 9])
@pytest.mark.parametrize("seed", range(4))
def test_anchors_are_assigned_as_the_paper_says(seed, candidates):
    torch.manual_seed(seed)
    levels = anchors_of((256, 384))
    corners = torch.rand(12, 2, dtype=torch.float64) * 160
    sides = 6 * 80 ** torch.rand(12, 1, dtype=torch.float64)  # 6 to 480 pixels
    sides = sides * (0.7 + 0.6 * torch.rand(12, 2, dtype=torch.float64))
    boxes = torch.cat([corners, corners + sides], dim=1)
    expected = assigned(boxes.tolist(), levels, candidates)
    tensors = [torch.tensor(level, dtype=torch.float64) for level in levels]
    assert assign(boxes, tensors, candidates).tolist() == expected
    assert len(set(expected)) > 5
    assert max(expected[: len(levels[0])]) >= 0 and max(expected[len(levels[0]) :]) >= 0


def square(x, y, half):
    return [x - half, y - half, x + half, y + half]


def test_assignment_of_one_object_by_hand():
    # IoU with the object are 1, 9/16 and 0; their mean plus deviation is 0.521 + 0.501 = 1.022 > 1,
    # so that none is good enough; with two more anchors of no overlap it is 0.313 + 0.455 = 0.767.
    box = torch.tensor([square(8.0, 8, 4)])
    level = torch.tensor([square(8, 8, 4), square(8, 8, 3), square(90, 90, 4)])
    assert assign(box, [level], 9).tolist() == [-1, -1, -1]
    far = torch.tensor([square(60, 60, 4), square(70, 70, 4)])
    assert assign(box, [level, far], 9).tolist() == [0, -1, -1, -1, -1]
    # With only the nearest of each level they are 1 and 0: 0.5 + 0.707 > 1.
    assert assign(box, [level, far], 1).tolist() == [-1] * 5


def test_an_anchor_that_two_objects_claim_goes_to_the_one_that_it_overlaps_more():
    near, far = square(10, 10, 8), square(90, 90, 8)
    level = torch.tensor([near, *[far] * 8])
    first, second = square(10, 10, 6), square(10, 10, 7)  # IoU 0.5625 and 0.766
    assert assign(torch.tensor([first, second]), [level], 9)[0] == 1
    assert assign(torch.tensor([second, first]), [level], 9)[0] == 0
    assert assign(torch.tensor([first, square(90, 90, 7)]), [level], 9)[0] == 0


def test_an_anchor_with_its_centre_outside_is_not_assigned():
    # The anchor at (8, 8) overlaps an object that ends at 8.005 best of all.
    level = torch.tensor([square(8, 8, 4), *[square(90, 90, 4)] * 8])
    for edge, expected in ((8.005, -1), (8.02, 0)):
        assert assign(torch.tensor([[4.0, 4, edge, 12]]), [level], 9)[0] == expected


def test_without_objects_all_is_background():
    found = assign(torch.zeros(0, 4), [torch.rand(5, 4), torch.rand(2, 4)], 9)
    assert found.dtype == torch.int64 and found.tolist() == [BACKGROUND] * 7


def test_centerness_by_hand():
    boxes = torch.tensor([[0.0, 0, 8, 8]] * 4)
    anchors = torch.tensor([square(4, 4, 9), square(2, 4, 1), square(6, 2, 1), square(7.9, 4, 3)])
    expected = [1, math.sqrt(2 / 6), math.sqrt(2 / 6 * 2 / 6), math.sqrt(0.1 / 7.9)]
    assert centerness(anchors, boxes).tolist() == pytest.approx(expected, abs=1e-5)


def decoded(anchor, offsets):
    """Return the box that offsets, multiplied by .1 .1 .2 .2, make of an anchor."""
    x, y = middle(anchor)
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


def central(anchor, box):
    x, y = middle(anchor)
    across, down = sorted((x - box[0], box[2] - x)), sorted((y - box[1], box[3] - y))
    return math.sqrt(across[0] / across[1] * down[0] / down[1])


def expected_losses(model, images, targets):
    with torch.no_grad():
        maps = model.maps(images)
    classes = boxes = centre = weights = 0.0
    positives = 0
    for index, target in enumerate(targets):
        levels = anchors_of(target.size)
        matches = assigned(target.boxes.tolist(), levels, 9)
        anchors = [anchor for level in levels for anchor in level]
        logits = predicted(maps.classes, index, target.size, 1, 3)
        offsets = predicted(maps.boxes, index, target.size, 1, 4)
        centres = predicted(maps.centerness, index, target.size, 1, 1)
        for i, (anchor, match) in enumerate(zip(anchors, matches, strict=True)):
            label = None if match < 0 else int(target.labels[match])
            classes += sum(focal(value, c == label, 0.25, 2) for c, value in enumerate(logits[i]))
            if match >= 0:
                box = target.boxes[match].tolist()
                weight = central(anchor, box)
                boxes += weight * (1 - giou(decoded(anchor, offsets[i]), box))
                weights += weight
                p = 1 / (1 + math.exp(-centres[i][0]))
                centre -= weight * math.log(p) + (1 - weight) * math.log(1 - p)
        positives += max(1, sum(match >= 0 for match in matches))
    return {
        "class": classes / positives,
        "box": 2 * boxes / max(weights, 1),
        "centerness": centre / positives,
    }, positives


def detector():
    """Return a small ATSS whose levels have unlike scales."""
    model = small(ATSSDetector, "atss", **GROUPS)
    with torch.no_grad():
        model.head.scales.copy_(torch.tensor([1.0, 1.5, 0.5, 2, 0.8]))
        model.head.centerness.weight.normal_(std=0.1)
    return model


def test_losses_are_those_of_loops_over_all_anchors():
    images, targets = batch()
    model = detector()
    expected, positives = expected_losses(model, images, targets)
    losses = model(images, targets)
    assert positives > 15
    assert list(losses) == ["class", "box", "centerness"]
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-4), name


def test_losses_of_few_positives_are_divided_by_one_at_least():
    images, targets = batch()
    model = detector()
    few = [targets[2]] * 2 + [type(targets[0])(torch.tensor([[2.0, 2, 9, 15]]), torch.tensor([1]),
                                               (32, 50))]  # fmt: skip
    expected, positives = expected_losses(model, images, few)
    losses = model(images, few)
    assert positives == 3
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-4), name


def test_losses_without_any_object_are_those_of_classes_alone():
    images, targets = batch()
    model = detector()
    expected, positives = expected_losses(model, images, empty(targets))
    losses = model(images, empty(targets))
    assert positives == 3 and losses["box"] == 0 and losses["centerness"] == 0
    assert losses["class"].item() == pytest.approx(expected["class"], rel=1e-4)


def test_a_level_has_a_scale_of_its_own_for_offsets_alone():
    images, _ = batch()
    model = detector()
    with torch.no_grad():
        before = model.maps(images)
        model.head.scales[3] *= 3
        after = model.maps(images)
    for level in range(5):
        factor = 3 if level == 3 else 1
        assert after.boxes[level].allclose(factor * before.boxes[level])
        assert torch.equal(after.classes[level], before.classes[level])
        assert torch.equal(after.centerness[level], before.centerness[level])


@pytest.mark.parametrize("of", ["some images", "no image", "one image"])
def test_every_parameter_learns_whatever_the_batch_holds(of):
    images, targets = batch()
    if of == "no image":
        targets = empty(targets)
    if of == "one image":
        images, targets = images[:1], targets[:1]
    assert_every_parameter_learns(detector(), images, targets)


def test_losses_under_autocast_are_those_of_single_precision():
    images, targets = batch()
    model = detector()
    exact = model(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = assert_every_parameter_learns(model, images, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.02)


def losses_of_rank(rank, folder):
    """Write the losses of one of two processes: it has one image of the batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    images, targets = batch()
    losses = detector()(images[rank : rank + 1], targets[rank : rank + 1])
    torch.save({name: loss.item() for name, loss in losses.items()}, f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_have_on_average_the_losses_of_one_with_the_whole_batch(tmp_path):
    # Forks: a new process would import torch and all, which takes seven seconds.
    multiprocessing.start_processes(losses_of_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    parts = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    images, targets = batch()
    whole = detector()(images[:2], targets[:2])
    for name, loss in whole.items():
        assert parts[0][name] != pytest.approx(parts[1][name], rel=1e-2)
        assert (parts[0][name] + parts[1][name]) / 2 == pytest.approx(loss.item(), rel=1e-4)


def test_what_is_found_is_inside_the_image_and_does_not_depend_on_neighbours():
    images, targets = batch()
    model = detector().eval()
    sizes = [each.size for each in targets]
    with torch.no_grad():
        together = model.predict(images, sizes)
        assert sum(len(each.scores) for each in together) > 20
        for index, ((height, width), each) in enumerate(zip(sizes, together, strict=True)):
            assert len(each.scores) <= 100 and (each.scores.diff() <= 0).all()
            assert (each.boxes >= 0).all() and (each.boxes[:, 0::2] <= width).all()
            assert (each.boxes[:, 1::2] <= height).all()
            (alone,) = model.predict(images[index : index + 1], sizes[index : index + 1])
            assert torch.equal(each.labels, alone.labels)
            assert each.boxes.allclose(alone.boxes, atol=1e-3)
            assert each.scores.allclose(alone.scores, atol=1e-5)


def test_what_is_found_are_the_anchors_moved_by_their_offsets():
    images, targets = batch()
    model = detector().eval()
    size = targets[0].size
    with torch.no_grad():
        maps = model.maps(images[:1])
        (found,) = model.predict(images[:1], [size])
    anchors = [anchor for level in anchors_of(size) for anchor in level]
    logits = predicted(maps.classes, 0, size, 1, 3)
    offsets = predicted(maps.boxes, 0, size, 1, 4)
    centres = predicted(maps.centerness, 0, size, 1, 1)
    scores = {
        (anchor, label): 1 / (1 + math.exp(-logit)) / (1 + math.exp(-centres[anchor][0]))
        for anchor, values in enumerate(logits)
        for label, logit in enumerate(values)
    }
    best, label = max(scores, key=scores.get)
    box = decoded(anchors[best], offsets[best])
    cut = [min(max(side, 0), size[1 - axis % 2]) for axis, side in enumerate(box)]
    assert found.boxes[0].tolist() == pytest.approx(cut, abs=1e-3)
    assert found.labels[0] == label
    assert found.scores[0].item() == pytest.approx(scores[best, label], rel=1e-4)


def on_a_pyramid():
    """Return a detector on the demo's SMT-T as it starts."""
    torch.manual_seed(0)
    backbone = Pyramid(load_project(ROOT / "params", "demo").models["smt_tiny"], 0.0)
    spec = head("atss", channels=32, convolutions=1, **GROUPS)
    return ATSSDetector(backbone, head=spec, classes=3)


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
