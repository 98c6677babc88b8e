"""The region proposal network: what it learns, what it proposes, and its size."""

import math

import pytest
import torch

from smt.config.heads import Anchors, Sampling, Selection
from smt.detection.matching import BACKGROUND, LEFT_OUT
from smt.detection.rpn import RegionProposalNetwork
from smt.detection.structures import Target
from tests.helpers.dense_scenes import head, iou, parameters, target
from tests.helpers.two_stage_scenes import by_definition, decoded, encoded, kept_by_definition

STRIDES = (4, 8, 16, 32, 64)
SCALE, RATIOS = 8, (0.5, 1, 2)
ALL = Sampling(boxes=100_000, positive=1.0)


def network(name="mask_rcnn", *, channels=8, spread=0.0, **changes):
    """Return a network with the paper's head but for `changes`; `spread` makes it see things."""
    torch.manual_seed(0)
    rpn = RegionProposalNetwork(head(name).rpn.model_copy(update=changes), channels, STRIDES)
    if spread:
        with torch.no_grad():
            rpn.convolution.weight.normal_(std=0.2)
            rpn.objectness.weight.normal_(std=spread)
            rpn.offsets.weight.normal_(std=spread / 3)
    return rpn


def pyramid(images, height, width, channels=8):
    """Return levels of an image that is padded to height and width."""
    shapes = [(height // each, width // each) for each in STRIDES[:-1]]
    shapes.append(((height // 32 + 1) // 2, (width // 32 + 1) // 2))
    return [torch.randn(images, channels, *shape) for shape in shapes]


def anchors_of(levels):
    """Return (level, box) of each anchor: level, row, column, ratio."""
    found = []
    for level, features in enumerate(levels):
        stride = STRIDES[level]
        for row in range(features.shape[2]):
            for column in range(features.shape[3]):
                for ratio in RATIOS:
                    half = stride * SCALE / math.sqrt(ratio) / 2
                    tall = stride * SCALE * math.sqrt(ratio) / 2
                    x, y = column * stride, row * stride
                    found.append((level, [x - half, y - tall, x + half, y + tall]))
    return found


@torch.no_grad()
def read(rpn, levels):
    """Return each anchor's (logit, dx, dy, dw, dh) of each image, read from maps one by one."""
    images = []
    for index in range(len(levels[0])):
        values = []
        for features in levels:
            hidden = rpn.convolution(features).relu()
            logits, offsets = rpn.objectness(hidden)[index], rpn.offsets(hidden)[index]
            for row in range(features.shape[2]):
                for column in range(features.shape[3]):
                    for each in range(len(RATIOS)):
                        of_place = offsets[4 * each : 4 * each + 4, row, column].tolist()
                        values.append([float(logits[each, row, column]), *of_place])
        images.append(values)
    return images


def test_its_size_is_the_papers():
    # 3 x 3 x 256 x 256 + 256, 3 of 256 + 1, 12 of 256 + 1
    assert parameters(network(channels=256)) == 590_080 + 771 + 3_084  # 0.594M


def test_it_starts_from_a_narrow_normal_distribution():
    rpn = network(channels=256)
    for layer in (rpn.convolution, rpn.objectness, rpn.offsets):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert layer.weight.mean().abs() < 1e-3
        assert not layer.bias.any()


def test_anchors_and_predictions_are_in_one_order():
    rpn, levels = network(spread=0.5), pyramid(2, 64, 96)
    predictions = rpn(levels)
    anchors = anchors_of(levels)
    assert torch.allclose(predictions.anchors, torch.tensor([box for _, box in anchors]))
    for image, values in enumerate(read(rpn, levels)):
        expected = torch.tensor(values)
        assert torch.allclose(predictions.objectness[image], expected[:, 0], atol=1e-5)
        assert torch.allclose(predictions.offsets[image], expected[:, 1:], atol=1e-5)


def exact(boxes, labels, size):
    """Return a target in float64, where a best overlap is one in a loop as well."""
    found = target(boxes, labels, size)
    return Target(found.boxes.double(), found.labels, size)


def test_anchors_that_find_objects_are_those_of_the_definition():
    rpn, levels = network(), pyramid(1, 96, 96)
    scene = exact([[10, 11, 61, 41], [4, 5, 30, 91], [51, 50, 90, 85]], [0, 1, 1], (92, 96))
    anchors = [box for _, box in anchors_of(levels)]
    overlaps = [[iou(each, box) for box in anchors] for each in scene.boxes.tolist()]
    expected = by_definition(overlaps, rpn.spec.matching)
    assert {0, 1, 2, BACKGROUND, LEFT_OUT} == set(expected)
    assert rpn.matches(torch.tensor(anchors, dtype=torch.float64), scene).tolist() == expected


def test_places_in_the_padding_of_the_batch_are_left_out():
    levels = pyramid(1, 96, 128)
    rpn = network()
    predictions = rpn(levels)
    matches = rpn.matches(predictions.anchors, target([], [], (40, 90))).tolist()
    for found, (x1, y1, x2, y2) in zip(matches, predictions.anchors.tolist(), strict=True):
        # Alone the image would have been padded to 64 x 96.
        assert (found != LEFT_OUT) == (round((x1 + x2) / 2) < 96 and round((y1 + y2) / 2) < 64)


def test_rounding_moves_no_place_into_an_image_or_out_of_it():
    # Of the paper's ratios no centre falls short of its place in float32; of 1.5 some do.
    rpn = network(anchors=Anchors(scales=(8,), ratios=(0.5, 1, 1.5)))
    shapes = [(1600 // stride, 1600 // stride) for stride in STRIDES]
    anchors = torch.cat(rpn.anchors(shapes))
    for side in range(32, 1600, 32):
        matches = rpn.matches(anchors, target([], [], (side, 1600)))
        rows = sum(-(-side // stride) * (1600 // stride) for stride in STRIDES)
        assert (matches != LEFT_OUT).sum() == 3 * rows


def test_cascade_learns_of_anchors_inside_the_image_only():
    rpn, levels = network("cascade_mask_rcnn"), pyramid(1, 96, 96)
    anchors = rpn(levels).anchors
    # At the left edge, half as wide as the anchor that is best for it: 22.6 x 45.3 at (8, 40).
    scene = target([[0, 20, 12, 60]], [0], (90, 80))
    matches = rpn.matches(anchors, scene).tolist()
    inside = [x1 >= 0 and y1 >= 0 and x2 < 80 and y2 < 90 for x1, y1, x2, y2 in anchors.tolist()]
    assert 0 < sum(inside) < len(anchors) / 2
    assert all(found == LEFT_OUT for found, ok in zip(matches, inside, strict=True) if not ok)
    # Of those inside, the one at (12, 40) is best; its overlap is 452.5 of 1051.5: of low quality.
    (best,) = (index for index, found in enumerate(matches) if found == 0)
    overlaps = [iou([0, 20, 12, 60], box) for box in anchors.tolist()]
    assert inside[best] and overlaps[best] == pytest.approx(0.4304, abs=1e-4)
    assert overlaps[best] == max(each for each, ok in zip(overlaps, inside, strict=True) if ok)
    assert max(overlaps) > overlaps[best]
    # Mask R-CNN has the other.
    everywhere = network().matches(anchors, scene)
    assert overlaps[everywhere.tolist().index(0)] == max(overlaps)


SCENES = [
    target([[10, 12, 60, 40], [4, 4, 30, 90], [50, 50, 90, 84]], [0, 1, 1], (90, 96)),
    target([], [], (96, 70)),
]


def cross_entropy(logit, label):
    return math.log1p(math.exp(-logit if label else logit))


def distance(one, other, beta):
    """Return the smooth L1 distance; L1 for beta None."""
    difference = abs(one - other)
    if beta is None or difference >= beta:
        return difference - (beta or 0) / 2
    return difference**2 / (2 * beta)


@pytest.mark.parametrize("beta", [None, 1 / 9, 1.5])
def test_losses_are_sums_over_drawn_anchors_over_their_number(beta):
    levels = pyramid(2, 96, 96)
    rpn = network(spread=0.5, sampling=ALL, smooth_l1=beta)
    predictions = rpn(levels)
    class_loss, box_loss, drawn = 0.0, 0.0, 0
    for values, scene in zip(read(rpn, levels), SCENES, strict=True):
        matches = rpn.matches(predictions.anchors, scene).tolist()
        found = 0
        for (logit, *offsets), each, (_, anchor) in zip(
            values, matches, anchors_of(levels), strict=True
        ):
            if each == LEFT_OUT:
                continue
            drawn += 1
            class_loss += cross_entropy(logit, each >= 0)
            if each >= 0:
                found += 1
                goal = encoded(scene.boxes[each].tolist(), anchor)
                box_loss += sum(distance(*two, beta) for two in zip(offsets, goal, strict=True))
        drawn += found == 0  # an image without a positive anchor counts one all the same
    losses = rpn.losses(predictions, SCENES)
    assert losses["rpn_class"].item() == pytest.approx(class_loss / drawn, rel=1e-5)
    assert losses["rpn_box"].item() == pytest.approx(box_loss / drawn, rel=1e-5)


def test_offsets_are_divided_by_their_deviations():
    levels, (scene, _) = pyramid(1, 96, 96), SCENES
    plain = network(sampling=ALL)
    with torch.no_grad():
        plain.offsets.weight.zero_()
    divided = network(sampling=ALL, deviations=(0.1, 0.1, 0.1, 0.1))
    divided.load_state_dict(plain.state_dict())
    losses = [each.losses(each(levels), [scene])["rpn_box"].item() for each in (plain, divided)]
    assert losses[1] == pytest.approx(10 * losses[0], rel=1e-5)


def test_a_loss_is_of_as_many_anchors_as_are_to_be_drawn():
    levels, (scene, _) = pyramid(1, 96, 96), SCENES
    rpn = network(sampling=Sampling(boxes=6, positive=0.5))
    with torch.no_grad():  # log 2 whatever the label
        rpn.objectness.weight.zero_()
    predictions = rpn(levels)
    predictions.objectness.retain_grad()
    losses = rpn.losses(predictions, [scene])
    assert losses["rpn_class"].item() == pytest.approx(math.log(2))
    losses["rpn_class"].backward()
    assert predictions.objectness.grad.ne(0).sum() == 6
    assert predictions.objectness.grad.lt(0).sum() == 3  # pushed up


@pytest.mark.parametrize("scene", [target([], [], (64, 64)), target([], [], (8, 8))])
def test_without_objects_there_is_a_gradient_all_the_same(scene):
    # In an image of 8 pixels no anchor is inside: nothing at all is drawn.
    rpn = network("cascade_mask_rcnn", spread=0.5)
    losses = rpn.losses(rpn(pyramid(1, 64, 64)), [scene])
    sum(losses.values()).backward()
    assert losses["rpn_box"] == 0 and losses["rpn_class"].isfinite()
    assert (losses["rpn_class"] > 0) == (scene.size == (64, 64))
    assert all(each.grad is not None for each in rpn.parameters())
    assert not rpn.offsets.weight.grad.any()


def proposed(values, anchors, size, selection):
    """Return an image's proposals by the definition, best first, in float64."""
    found = []
    for level in range(len(STRIDES)):
        of_level = [
            (value[0], level, decoded(anchor, value[1:]))
            for value, (where, anchor) in zip(values, anchors, strict=True)
            if where == level
        ]
        found += sorted(of_level, key=lambda each: -each[0])[: selection.before]
    limits = (size[1], size[0], size[1], size[0])
    cut = [
        (score, level, [min(max(each, 0), most) for each, most in zip(box, limits, strict=True)])
        for score, level, box in found
    ]
    cut = [each for each in cut if each[2][0] < each[2][2] and each[2][1] < each[2][3]]
    scores, levels, boxes = zip(*cut, strict=True)
    kept = kept_by_definition(boxes, scores, levels, selection.nms)
    return [boxes[each] for each in kept][: selection.keep]


@pytest.mark.parametrize(
    "selection",
    [
        Selection(before=40, nms=0.6, keep=1000),
        Selection(before=40, nms=0.6, keep=15),
        Selection(before=100_000, nms=0.3, keep=1000),
    ],
)
def test_proposals_are_those_of_the_definition(selection):
    levels, sizes = pyramid(2, 64, 96), [(60, 90), (33, 65)]
    rpn = network(spread=0.5).requires_grad_(False)
    values, anchors = read(rpn, levels), anchors_of(levels)
    proposals = rpn.propose(rpn(levels), sizes, selection)
    for found, of_image, size in zip(proposals, values, sizes, strict=True):
        expected = proposed(of_image, anchors, size, selection)
        assert len(found) == len(expected) >= 15
        assert torch.allclose(found, torch.tensor(expected), atol=1e-3)


def test_an_image_proposes_the_same_however_far_its_batch_is_padded():
    rpn = network(spread=0.5)
    levels, selection = pyramid(1, 64, 96), Selection(before=100_000, nms=0.7, keep=1000)
    padded = pyramid(1, 160, 192)
    for small, large in zip(levels, padded, strict=True):
        large[:, :, : small.shape[2], : small.shape[3]] = small
        # As a convolution pads an image that is alone; beyond that there is noise.
        large[:, :, small.shape[2], : small.shape[3] + 1] = 0
        large[:, :, : small.shape[2] + 1, small.shape[3]] = 0
    (alone,) = rpn.propose(rpn(levels), [(61, 80)], selection)
    (within,) = rpn.propose(rpn(padded), [(61, 80)], selection)
    assert len(alone) > 20
    assert torch.allclose(alone, within, atol=1e-4)


def test_levels_are_suppressed_each_by_itself():
    levels = pyramid(1, 64, 64)
    rpn = network()
    with torch.no_grad():
        rpn.offsets.weight.zero_()
        rpn.offsets.bias.copy_(torch.tensor([0, 0, 9.0, 9]).repeat(3))  # all are the whole image
    proposals = rpn.propose(rpn(levels), [(64, 64)], Selection(before=100, nms=0.7, keep=1000))
    assert proposals[0].tolist() == [[0, 0, 64, 64]] * 5


def test_boxes_beyond_the_image_are_no_proposals_and_proposals_have_no_gradient():
    levels = pyramid(1, 64, 64)
    rpn = network(spread=0.5)
    selection = Selection(before=100, nms=0.7, keep=1000)
    (proposals,) = rpn.propose(rpn(levels), [(64, 64)], selection)
    assert len(proposals) and not proposals.requires_grad
    with torch.no_grad():
        rpn.offsets.bias[::4] += 100
    (proposals,) = rpn.propose(rpn(levels), [(64, 64)], selection)
    assert proposals.shape == (0, 4)
