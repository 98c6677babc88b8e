"""Shared parts of dense detectors: grids, predictions of an image, targets, post-processing."""

import math

import pytest
import torch
from torch import nn

from smt.config.heads import Selection
from smt.detection.dense import (
    Maps,
    Predictions,
    assignment,
    detections,
    initialise,
    tower,
    unpadded_grids,
)
from smt.detection.fpn import FeaturePyramid
from smt.detection.matching import BACKGROUND, LEFT_OUT
from smt.detection.retinanet import RetinaNetDetector
from tests.helpers.dense_scenes import (
    SmallBackbone,
    iou,
    locations,
    read_predictions,
    small,
    target,
)

UNIT = (1.0, 1.0, 1.0, 1.0)


def test_unpadded_grids_are_those_of_the_size_padded_to_32():
    # 100 x 40 is padded to 128 x 64.
    assert unpadded_grids((100, 40)) == [(16, 8), (8, 4), (4, 2), (2, 1), (1, 1)]
    assert unpadded_grids((160, 161)) == [(20, 24), (10, 12), (5, 6), (3, 3), (2, 2)]
    assert unpadded_grids((1, 1)) == [(4, 4), (2, 2), (1, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (224, 64), (800, 1312)])
@pytest.mark.parametrize("extra", ["from_input", "from_output"])
def test_unpadded_grids_equal_the_levels_of_the_pyramid(size, extra):
    with torch.device("meta"):
        pyramid = FeaturePyramid(SmallBackbone.widths[1:], 8, extra)
        levels = pyramid(SmallBackbone()(torch.empty(1, 3, *size))[1:])
    assert [tuple(level.shape[-2:]) for level in levels] == unpadded_grids(size)


def unique_maps(batch, size, channels):
    """Return maps in which every value is unique."""
    maps, first = [], 0
    for height, width in unpadded_grids(size):
        count = batch * channels * height * width
        values = torch.arange(first, first + count, dtype=torch.float32)
        maps.append(values.view(batch, channels, height, width))
        first += count
    return maps


def test_predictions_leave_padding_out_and_have_the_order_of_anchors():
    model = small(RetinaNetDetector, "retinanet", classes=2)
    maps = Maps(
        unique_maps(2, (160, 256), 18),
        unique_maps(2, (160, 256), 36),
        unique_maps(2, (160, 256), 9),
    )
    sizes = [(160, 250), (70, 129)]
    for index, predictions in enumerate(model.predictions(maps, sizes)):
        expected = read_predictions(maps.classes, index, sizes[index], 9, 2)
        assert torch.cat(predictions.logits).tolist() == expected
        expected = read_predictions(maps.boxes, index, sizes[index], 9, 4)
        assert torch.cat(predictions.offsets).tolist() == expected
        expected = read_predictions(maps.centerness, index, sizes[index], 9, 1)
        assert torch.cat(predictions.centerness)[:, None].tolist() == expected
        expected_locations = locations(sizes[index])
        anchors = torch.cat(predictions.anchors).unflatten(0, (-1, 9))
        centres = (anchors[..., :2] + anchors[..., 2:]) / 2
        assert len(anchors) == len(expected_locations)
        for (stride, row, column), centre in zip(expected_locations, centres, strict=True):
            assert centre.allclose(torch.tensor([column * stride, row * stride]).float(), atol=1e-4)


def test_targets_of_a_batch_by_hand():
    targets = [
        target([[0, 0, 4, 4], [2, 2, 8, 9]], [1, 0], (32, 32)),
        target([], [], (32, 32)),
        target([[5, 5, 6, 7]], [2], (32, 32)),
    ]
    matches = [
        torch.tensor([1, BACKGROUND, 0, LEFT_OUT]),
        torch.tensor([BACKGROUND, BACKGROUND]),
        torch.tensor([LEFT_OUT, 0, 0]),
    ]
    anchors = [
        torch.arange(4.0 * len(image_matches)).view(-1, 4) + 100 * i
        for i, image_matches in enumerate(matches)
    ]
    assigned = assignment(matches, anchors, targets, classes=3)
    assert assigned.labels.tolist() == [0, 3, 1, -1, 3, 3, -1, 2, 2]
    assert assigned.positive.tolist() == [0, 2, 7, 8]
    assert assigned.boxes.tolist() == [[2, 2, 8, 9], [0, 0, 4, 4], [5, 5, 6, 7], [5, 5, 6, 7]]
    assert assigned.anchors[:, 0].tolist() == [0, 8, 204, 208]
    assert assigned.count == 2 + 1 + 2  # an image without objects counts as one


def random_predictions(counts, classes, *, seed=0, centerness=False):
    """Return predictions of levels of `counts` anchors, some beyond 64 x 48 pixels."""
    torch.manual_seed(seed)

    def levels(*shape):
        return [torch.randn(count, *shape) for count in counts]

    corners = [32 * torch.rand(count, 2) for count in counts]
    anchors = [torch.cat([xy, xy + 9 + 30 * torch.rand(len(xy), 2)], 1) for xy in corners]
    return Predictions(
        anchors,
        [logits - 1 for logits in levels(classes)],
        [offsets / 5 for offsets in levels(4)],
        levels() if centerness else [],
    )


def decode_and_clip(anchor, offsets, size):
    """Return the box of an anchor and its offsets, clipped to the image."""
    x1, y1, x2, y2 = anchor
    x = (x1 + x2) / 2 + offsets[0] * (x2 - x1)
    y = (y1 + y2) / 2 + offsets[1] * (y2 - y1)
    width, height = (x2 - x1) * math.exp(offsets[2]), (y2 - y1) * math.exp(offsets[3])
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return [min(max(side, 0), size[1 - axis % 2]) for axis, side in enumerate(box)]


def detect_by_loop(predictions, size, rule):
    """Return the detections (score, label, box), by loops over all candidates."""
    candidates = []
    for level, logits in enumerate(predictions.logits):
        pairs = [
            (1 / (1 + math.exp(-logit)), row, label)
            for row, values in enumerate(logits.double().tolist())
            for label, logit in enumerate(values)
        ]
        pairs = sorted((pair for pair in pairs if pair[0] > rule.score), reverse=True)
        for score, row, label in pairs[: rule.before]:
            if predictions.centerness:
                score /= 1 + math.exp(-float(predictions.centerness[level][row]))
            anchor = predictions.anchors[level][row].double().tolist()
            offsets = predictions.offsets[level][row].double().tolist()
            candidates.append((score, label, decode_and_clip(anchor, offsets, size)))
    kept = []
    for score, label, box in sorted(candidates, reverse=True):
        rivals = [other for _, other_label, other in kept if other_label == label]
        if all(iou(box, other) <= rule.nms for other in rivals):
            kept.append((score, label, box))
    return kept[: rule.keep]


@pytest.mark.parametrize("centerness", [False, True], ids=["scores", "scores times centerness"])
@pytest.mark.parametrize(
    "rule",
    [
        Selection(before=1000, nms=0.5, keep=1000, score=0.05),
        Selection(before=25, nms=0.3, keep=1000, score=0.2),
        Selection(before=40, nms=0.6, keep=12, score=0.6),
        Selection(before=40, nms=1, keep=200),
    ],
    ids=["all", "few of each level", "few of an image", "no suppression"],
)
def test_detections_equal_loops_over_all_candidates(rule, centerness):
    predictions = random_predictions((60, 30, 8, 2, 1), 3, centerness=centerness)
    actual = detections(predictions, (64, 48), UNIT, rule)
    expected = detect_by_loop(predictions, (64, 48), rule)
    assert len(expected) > 5
    assert actual.labels.tolist() == [label for _, label, _ in expected]
    assert actual.scores.tolist() == pytest.approx([score for score, _, _ in expected], abs=1e-6)
    for box, (_, _, other) in zip(actual.boxes.tolist(), expected, strict=True):
        assert box == pytest.approx(other, abs=1e-4)


def one_level(anchors, logits, centerness=None):
    anchors = torch.tensor(anchors, dtype=torch.float32)
    levels = [] if centerness is None else [torch.tensor(centerness)]
    return Predictions([anchors], [torch.tensor(logits)], [torch.zeros_like(anchors)], levels)


def test_an_anchor_may_be_detected_as_several_classes():
    predictions = one_level([[2, 2, 9, 9]], [[0.0, 1.0]])
    actual = detections(
        predictions, (16, 16), UNIT, Selection(before=9, nms=0.5, keep=9, score=0.1)
    )
    assert actual.labels.tolist() == [1, 0]
    assert actual.boxes.tolist() == [[2, 2, 9, 9]] * 2
    best = Selection(before=1, nms=0.5, keep=9, score=0.1)  # a pair of anchor and class
    assert detections(predictions, (16, 16), UNIT, best).labels.tolist() == [1]


def test_centerness_ranks_boxes_after_the_score_threshold():
    rule = Selection(before=9, nms=0.5, keep=9, score=0.5)
    predictions = one_level([[0, 0, 9, 9], [0, 0, 9, 8]], [[3.0], [2.0]], [-4.0, 0.0])
    actual = detections(predictions, (16, 16), UNIT, rule)
    assert actual.boxes.tolist() == [[0, 0, 9, 8]]
    assert actual.scores.item() == pytest.approx(0.5 / (1 + math.exp(-2)))  # below the threshold


def test_a_score_equal_to_the_threshold_is_dropped():
    rule = Selection(before=9, nms=0.5, keep=9, score=0.5)
    actual = detections(one_level([[0, 0, 9, 9]], [[0.0]]), (16, 16), UNIT, rule)
    assert len(actual.boxes) == len(actual.scores) == len(actual.labels) == 0
    assert actual.boxes.shape == (0, 4)


def test_a_tower_has_group_norm_only_with_groups():
    plain, normed = tower(8, 2), tower(8, 2, 4)
    assert [type(layer) for layer in plain] == [nn.Conv2d, nn.ReLU] * 2
    assert [type(layer) for layer in normed] == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 2
    assert plain[0].bias is not None and normed[0].bias is None and normed[1].num_groups == 4
    x = torch.randn(1, 8, 5, 7)
    assert plain(x).shape == x.shape and (normed(x) >= 0).all()


def test_initial_weights_are_small_and_class_probabilities_one_percent():
    torch.manual_seed(0)
    head = nn.ModuleDict(
        {"tower": tower(64, 2), "classes": nn.Conv2d(64, 30, 3), "boxes": tower(64, 1)}
    )
    initialise(head, head["classes"])
    for name, parameter in head.named_parameters():
        if name.endswith("weight"):
            assert parameter.mean().abs() < 5e-4 and parameter.std().item() == pytest.approx(
                0.01, rel=0.05
            )
        elif name != "classes.bias":
            assert not parameter.any()
    assert head["classes"].bias.sigmoid().allclose(torch.tensor(0.01))


def test_bfloat16_predictions_become_float32():
    model = small(RetinaNetDetector, "retinanet", classes=2)
    half = [[x.bfloat16() for x in unique_maps(1, (64, 64), n)] for n in (18, 36, 9)]
    (predictions,) = model.predictions(Maps(*half), [(64, 64)])
    actual = detections(predictions, (64, 64), UNIT, model.test)
    for tensor in (
        *predictions.logits,
        *predictions.offsets,
        *predictions.centerness,
        actual.boxes,
        actual.scores,
    ):
        assert tensor.dtype == torch.float32
