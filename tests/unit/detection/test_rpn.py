"""The region proposal network: size, anchors, matching, losses and proposals."""

import math

import pytest
import torch

from smt.config.heads import Anchors, Sampling, Selection
from smt.detection.matching import BACKGROUND, LEFT_OUT
from smt.detection.rpn import RegionProposalNetwork
from smt.detection.structures import Target
from tests.helpers.dense_scenes import head, iou, parameter_count, target
from tests.helpers.two_stage_scenes import decode, encode, match_by_loop, nms_by_loop

STRIDES = (4, 8, 16, 32, 64)
SCALE, RATIOS = 8, (0.5, 1, 2)
ALL = Sampling(boxes=100_000, positive=1.0)


def network(name="mask_rcnn", *, channels=8, spread=0.0, **changes):
    """Return an RPN of the paper's spec with `changes`; `spread` scales its random weights."""
    torch.manual_seed(0)
    rpn = RegionProposalNetwork(head(name).rpn.model_copy(update=changes), channels, STRIDES)
    if spread:
        with torch.no_grad():
            rpn.convolution.weight.normal_(std=0.2)
            rpn.objectness.weight.normal_(std=spread)
            rpn.offsets.weight.normal_(std=spread / 3)
    return rpn


def pyramid(images, height, width, channels=8):
    """Return random levels (B, C, H_i, W_i) of images padded to height and width."""
    shapes = [(height // stride, width // stride) for stride in STRIDES[:-1]]
    shapes.append(((height // 32 + 1) // 2, (width // 32 + 1) // 2))
    return [torch.randn(images, channels, *shape) for shape in shapes]


def anchors_of(levels):
    """Return (level, box) of each anchor: level, row, column, ratio."""
    anchors = []
    for level, features in enumerate(levels):
        stride = STRIDES[level]
        for row in range(features.shape[2]):
            for column in range(features.shape[3]):
                for ratio in RATIOS:
                    half_width = stride * SCALE / math.sqrt(ratio) / 2
                    half_height = stride * SCALE * math.sqrt(ratio) / 2
                    x, y = column * stride, row * stride
                    anchors.append(
                        (level, [x - half_width, y - half_height, x + half_width, y + half_height])
                    )
    return anchors


@torch.no_grad()
def read_predictions(rpn, levels):
    """Return (logit, dx, dy, dw, dh) of each anchor of each image, read by a loop."""
    images = []
    for index in range(len(levels[0])):
        values = []
        for features in levels:
            hidden = rpn.convolution(features).relu()
            logits, offsets = rpn.objectness(hidden)[index], rpn.offsets(hidden)[index]
            for row in range(features.shape[2]):
                for column in range(features.shape[3]):
                    for ratio in range(len(RATIOS)):
                        of_location = offsets[4 * ratio : 4 * ratio + 4, row, column].tolist()
                        values.append([float(logits[ratio, row, column]), *of_location])
        images.append(values)
    return images


def test_parameter_count_by_hand():
    # 3 x 3 x 256 x 256 + 256, 3 of 256 + 1, 12 of 256 + 1
    assert parameter_count(network(channels=256)) == 590_080 + 771 + 3_084  # 0.594M


def test_initial_weights_are_normal_with_a_deviation_of_one_hundredth():
    rpn = network(channels=256)
    for layer in (rpn.convolution, rpn.objectness, rpn.offsets):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert layer.weight.mean().abs() < 1e-3
        assert not layer.bias.any()


def test_anchors_and_predictions_have_the_same_order():
    rpn, levels = network(spread=0.5), pyramid(2, 64, 96)
    predictions = rpn(levels)
    anchors = anchors_of(levels)
    assert torch.allclose(predictions.anchors, torch.tensor([box for _, box in anchors]))
    for image, values in enumerate(read_predictions(rpn, levels)):
        expected = torch.tensor(values)
        assert torch.allclose(predictions.objectness[image], expected[:, 0], atol=1e-5)
        assert torch.allclose(predictions.offsets[image], expected[:, 1:], atol=1e-5)


def float64_target(boxes, labels, size):
    """Return a target in float64, so that loops find the same best IoUs."""
    single = target(boxes, labels, size)
    return Target(single.boxes.double(), single.labels, size)


def test_matches_of_anchors_equal_a_loop():
    rpn, levels = network(), pyramid(1, 96, 96)
    scene = float64_target(
        [[10, 11, 61, 41], [4, 5, 30, 91], [51, 50, 90, 85]], [0, 1, 1], (92, 96)
    )
    anchors = [box for _, box in anchors_of(levels)]
    overlaps = [[iou(object_box, box) for box in anchors] for object_box in scene.boxes.tolist()]
    expected = match_by_loop(overlaps, rpn.spec.matching)
    assert {0, 1, 2, BACKGROUND, LEFT_OUT} == set(expected)
    assert rpn.matches(torch.tensor(anchors, dtype=torch.float64), scene).tolist() == expected


def test_anchors_in_the_padding_of_the_batch_are_left_out():
    levels = pyramid(1, 96, 128)
    rpn = network()
    predictions = rpn(levels)
    matches = rpn.matches(predictions.anchors, target([], [], (40, 90))).tolist()
    for match, (x1, y1, x2, y2) in zip(matches, predictions.anchors.tolist(), strict=True):
        # In a batch of its own the image is padded to 64 x 96.
        assert (match != LEFT_OUT) == (round((x1 + x2) / 2) < 96 and round((y1 + y2) / 2) < 64)


def test_rounding_does_not_change_which_anchors_are_inside_the_image():
    # With a ratio of 1.5 some centres are below their exact values in float32.
    rpn = network(anchors=Anchors(scales=(8,), ratios=(0.5, 1, 1.5)))
    shapes = [(1600 // stride, 1600 // stride) for stride in STRIDES]
    anchors = torch.cat(rpn.anchors(shapes))
    for side in range(32, 1600, 32):
        matches = rpn.matches(anchors, target([], [], (side, 1600)))
        locations = sum(-(-side // stride) * (1600 // stride) for stride in STRIDES)
        assert (matches != LEFT_OUT).sum() == 3 * locations


def test_cascade_matches_only_anchors_inside_the_image():
    rpn, levels = network("cascade_mask_rcnn"), pyramid(1, 96, 96)
    anchors = rpn(levels).anchors
    # At the left edge, half as wide as its best anchor, which is 22.6 x 45.3 at (8, 40).
    scene = target([[0, 20, 12, 60]], [0], (90, 80))
    matches = rpn.matches(anchors, scene).tolist()
    inside = [x1 >= 0 and y1 >= 0 and x2 < 80 and y2 < 90 for x1, y1, x2, y2 in anchors.tolist()]
    assert 0 < sum(inside) < len(anchors) / 2
    assert all(
        match == LEFT_OUT for match, is_inside in zip(matches, inside, strict=True) if not is_inside
    )
    # The best anchor inside is at (12, 40): a low-quality match of IoU 452.5 / 1051.5.
    (best,) = (index for index, match in enumerate(matches) if match == 0)
    overlaps = [iou([0, 20, 12, 60], box) for box in anchors.tolist()]
    assert inside[best] and overlaps[best] == pytest.approx(0.4304, abs=1e-4)
    assert overlaps[best] == max(
        overlap for overlap, is_inside in zip(overlaps, inside, strict=True) if is_inside
    )
    assert max(overlaps) > overlaps[best]
    # Mask R-CNN matches the best of all anchors.
    matches_of_mask_rcnn = network().matches(anchors, scene)
    assert overlaps[matches_of_mask_rcnn.tolist().index(0)] == max(overlaps)


SCENES = [
    target([[10, 12, 60, 40], [4, 4, 30, 90], [50, 50, 90, 84]], [0, 1, 1], (90, 96)),
    target([], [], (96, 70)),
]


def cross_entropy(logit, label):
    return math.log1p(math.exp(-logit if label else logit))


def smooth_l1(one, other, beta):
    """Return the smooth L1 distance; L1 for beta None."""
    difference = abs(one - other)
    if beta is None or difference >= beta:
        return difference - (beta or 0) / 2
    return difference**2 / (2 * beta)


@pytest.mark.parametrize("beta", [None, 1 / 9, 1.5])
def test_losses_are_averaged_over_sampled_anchors(beta):
    levels = pyramid(2, 96, 96)
    rpn = network(spread=0.5, sampling=ALL, smooth_l1=beta)
    predictions = rpn(levels)
    class_loss, box_loss, sampled = 0.0, 0.0, 0
    for values, scene in zip(read_predictions(rpn, levels), SCENES, strict=True):
        matches = rpn.matches(predictions.anchors, scene).tolist()
        positives = 0
        for (logit, *offsets), match, (_, anchor) in zip(
            values, matches, anchors_of(levels), strict=True
        ):
            if match == LEFT_OUT:
                continue
            sampled += 1
            class_loss += cross_entropy(logit, match >= 0)
            if match >= 0:
                positives += 1
                expected = encode(scene.boxes[match].tolist(), anchor)
                box_loss += sum(
                    smooth_l1(*pair, beta) for pair in zip(offsets, expected, strict=True)
                )
        sampled += positives == 0  # an image without positives counts one more
    losses = rpn.losses(predictions, SCENES)
    assert losses["rpn_class"].item() == pytest.approx(class_loss / sampled, rel=1e-5)
    assert losses["rpn_box"].item() == pytest.approx(box_loss / sampled, rel=1e-5)


def test_offset_targets_are_divided_by_their_deviations():
    levels, (scene, _) = pyramid(1, 96, 96), SCENES
    plain = network(sampling=ALL)
    with torch.no_grad():
        plain.offsets.weight.zero_()
    divided = network(sampling=ALL, deviations=(0.1, 0.1, 0.1, 0.1))
    divided.load_state_dict(plain.state_dict())
    losses = [rpn.losses(rpn(levels), [scene])["rpn_box"].item() for rpn in (plain, divided)]
    assert losses[1] == pytest.approx(10 * losses[0], rel=1e-5)


def test_the_loss_is_that_of_the_sampled_anchors_only():
    levels, (scene, _) = pyramid(1, 96, 96), SCENES
    rpn = network(sampling=Sampling(boxes=6, positive=0.5))
    with torch.no_grad():  # a loss of log 2 for either label
        rpn.objectness.weight.zero_()
    predictions = rpn(levels)
    predictions.objectness.retain_grad()
    losses = rpn.losses(predictions, [scene])
    assert losses["rpn_class"].item() == pytest.approx(math.log(2))
    losses["rpn_class"].backward()
    assert predictions.objectness.grad.ne(0).sum() == 6
    assert predictions.objectness.grad.lt(0).sum() == 3  # positives


@pytest.mark.parametrize("scene", [target([], [], (64, 64)), target([], [], (8, 8))])
def test_without_objects_every_parameter_has_a_gradient(scene):
    # In an image of 8 pixels no anchor is inside, so that none is sampled.
    rpn = network("cascade_mask_rcnn", spread=0.5)
    losses = rpn.losses(rpn(pyramid(1, 64, 64)), [scene])
    sum(losses.values()).backward()
    assert losses["rpn_box"] == 0 and losses["rpn_class"].isfinite()
    assert (losses["rpn_class"] > 0) == (scene.size == (64, 64))
    assert all(parameter.grad is not None for parameter in rpn.parameters())
    assert not rpn.offsets.weight.grad.any()


def propose_by_loop(values, anchors, size, selection):
    """Return an image's proposals, best first, by loops in float64."""
    candidates = []
    for level in range(len(STRIDES)):
        of_level = [
            (value[0], level, decode(anchor, value[1:]))
            for value, (anchor_level, anchor) in zip(values, anchors, strict=True)
            if anchor_level == level
        ]
        candidates += sorted(of_level, key=lambda candidate: -candidate[0])[: selection.before]
    limits = (size[1], size[0], size[1], size[0])
    clipped = [
        (score, level, [min(max(side, 0), limit) for side, limit in zip(box, limits, strict=True)])
        for score, level, box in candidates
    ]
    clipped = [item for item in clipped if item[2][0] < item[2][2] and item[2][1] < item[2][3]]
    scores, levels, boxes = zip(*clipped, strict=True)
    kept = nms_by_loop(boxes, scores, levels, selection.nms)
    return [boxes[index] for index in kept][: selection.keep]


@pytest.mark.parametrize(
    "selection",
    [
        Selection(before=40, nms=0.6, keep=1000),
        Selection(before=40, nms=0.6, keep=15),
        Selection(before=100_000, nms=0.3, keep=1000),
    ],
)
def test_proposals_equal_a_loop(selection):
    levels, sizes = pyramid(2, 64, 96), [(60, 90), (33, 65)]
    rpn = network(spread=0.5).requires_grad_(False)
    values, anchors = read_predictions(rpn, levels), anchors_of(levels)
    proposals = rpn.propose(rpn(levels), sizes, selection)
    for boxes, of_image, size in zip(proposals, values, sizes, strict=True):
        expected = propose_by_loop(of_image, anchors, size, selection)
        assert len(boxes) == len(expected) >= 15
        assert torch.allclose(boxes, torch.tensor(expected), atol=1e-3)


def test_proposals_are_independent_of_the_padding_of_the_batch():
    rpn = network(spread=0.5)
    levels, selection = pyramid(1, 64, 96), Selection(before=100_000, nms=0.7, keep=1000)
    padded = pyramid(1, 160, 192)
    for small, large in zip(levels, padded, strict=True):
        large[:, :, : small.shape[2], : small.shape[3]] = small
        # Zeros next to the image, as the padding of a convolution; noise beyond.
        large[:, :, small.shape[2], : small.shape[3] + 1] = 0
        large[:, :, : small.shape[2] + 1, small.shape[3]] = 0
    (single,) = rpn.propose(rpn(levels), [(61, 80)], selection)
    (batched,) = rpn.propose(rpn(padded), [(61, 80)], selection)
    assert len(single) > 20
    assert torch.allclose(single, batched, atol=1e-4)


def test_nms_is_separate_for_each_level():
    levels = pyramid(1, 64, 64)
    rpn = network()
    with torch.no_grad():
        rpn.offsets.weight.zero_()
        # Large enough for every clipped box to be the whole image.
        rpn.offsets.bias.copy_(torch.tensor([0, 0, 9.0, 9]).repeat(3))
    proposals = rpn.propose(rpn(levels), [(64, 64)], Selection(before=100, nms=0.7, keep=1000))
    assert proposals[0].tolist() == [[0, 0, 64, 64]] * 5


def test_proposals_are_inside_the_image_and_have_no_gradient():
    levels = pyramid(1, 64, 64)
    rpn = network(spread=0.5)
    selection = Selection(before=100, nms=0.7, keep=1000)
    (proposals,) = rpn.propose(rpn(levels), [(64, 64)], selection)
    assert len(proposals) and not proposals.requires_grad
    with torch.no_grad():
        rpn.offsets.bias[::4] += 100
    (proposals,) = rpn.propose(rpn(levels), [(64, 64)], selection)
    assert proposals.shape == (0, 4)
