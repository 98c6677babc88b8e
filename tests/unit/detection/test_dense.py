"""What dense detectors share: which predictions are an image's, what they are to be, what stays."""

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
from tests.helpers.dense_scenes import SmallBackbone, iou, own_places, predicted, small, target

UNIT = (1.0, 1.0, 1.0, 1.0)


def test_an_image_of_its_own_has_grids_of_its_padded_size():
    # 100 x 40 is padded to 128 x 64.
    assert unpadded_grids((100, 40)) == [(16, 8), (8, 4), (4, 2), (2, 1), (1, 1)]
    assert unpadded_grids((160, 161)) == [(20, 24), (10, 12), (5, 6), (3, 3), (2, 2)]
    assert unpadded_grids((1, 1)) == [(4, 4), (2, 2), (1, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (224, 64), (800, 1312)])
@pytest.mark.parametrize("extra", ["from_input", "from_output"])
def test_grids_are_those_of_the_pyramid(size, extra):
    with torch.device("meta"):
        pyramid = FeaturePyramid(SmallBackbone.widths[1:], 8, extra)
        levels = pyramid(SmallBackbone()(torch.empty(1, 3, *size))[1:])
    assert [tuple(level.shape[-2:]) for level in levels] == unpadded_grids(size)


def numbered(batch, size, channels):
    """Return maps in which every value is another number."""
    maps, first = [], 0
    for height, width in unpadded_grids(size):
        count = batch * channels * height * width
        values = torch.arange(first, first + count, dtype=torch.float32)
        maps.append(values.view(batch, channels, height, width))
        first += count
    return maps


def test_predictions_are_read_from_the_own_part_of_the_maps_in_the_order_of_anchors():
    model = small(RetinaNetDetector, "retinanet", classes=2)
    maps = Maps(
        numbered(2, (160, 256), 18), numbered(2, (160, 256), 36), numbered(2, (160, 256), 9)
    )
    sizes = [(160, 250), (70, 129)]
    for index, each in enumerate(model.predictions(maps, sizes)):
        expected = predicted(maps.classes, index, sizes[index], 9, 2)
        assert torch.cat(each.logits).tolist() == expected
        expected = predicted(maps.boxes, index, sizes[index], 9, 4)
        assert torch.cat(each.offsets).tolist() == expected
        expected = predicted(maps.centerness, index, sizes[index], 9, 1)
        assert torch.cat(each.centerness)[:, None].tolist() == expected
        places = own_places(sizes[index])
        anchors = torch.cat(each.anchors).unflatten(0, (-1, 9))
        middles = (anchors[..., :2] + anchors[..., 2:]) / 2
        assert len(anchors) == len(places)
        for (stride, row, column), middle in zip(places, middles, strict=True):
            assert middle.allclose(torch.tensor([column * stride, row * stride]).float(), atol=1e-4)


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
        torch.arange(4.0 * len(each)).view(-1, 4) + 100 * i for i, each in enumerate(matches)
    ]
    found = assignment(matches, anchors, targets, classes=3)
    assert found.labels.tolist() == [0, 3, 1, -1, 3, 3, -1, 2, 2]
    assert found.positive.tolist() == [0, 2, 7, 8]
    assert found.boxes.tolist() == [[2, 2, 8, 9], [0, 0, 4, 4], [5, 5, 6, 7], [5, 5, 6, 7]]
    assert found.anchors[:, 0].tolist() == [0, 8, 204, 208]
    assert found.count == 2 + 1 + 2  # the image without an object counts one


def random_predictions(counts, classes, *, seed=0, central=False):
    """Return predictions of levels of `counts` anchors, some over the edge of 64 x 48."""
    torch.manual_seed(seed)

    def levels(*shape):
        return [torch.randn(count, *shape) for count in counts]

    corners = [32 * torch.rand(count, 2) for count in counts]
    anchors = [torch.cat([each, each + 9 + 30 * torch.rand(len(each), 2)], 1) for each in corners]
    return Predictions(
        anchors,
        [each - 1 for each in levels(classes)],
        [each / 5 for each in levels(4)],
        levels() if central else [],
    )


def decoded(anchor, offsets, size):
    """Return the box that offsets make of an anchor, cut to the image."""
    x1, y1, x2, y2 = anchor
    x = (x1 + x2) / 2 + offsets[0] * (x2 - x1)
    y = (y1 + y2) / 2 + offsets[1] * (y2 - y1)
    width, height = (x2 - x1) * math.exp(offsets[2]), (y2 - y1) * math.exp(offsets[3])
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return [min(max(side, 0), size[1 - axis % 2]) for axis, side in enumerate(box)]


def selected(predictions, size, rule):
    """Return (score, label, box) of what stays, by loops over all candidates."""
    found = []
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
            found.append((score, label, decoded(anchor, offsets, size)))
    kept = []
    for score, label, box in sorted(found, reverse=True):
        rivals = [other for _, same, other in kept if same == label]
        if all(iou(box, other) <= rule.nms for other in rivals):
            kept.append((score, label, box))
    return kept[: rule.keep]


@pytest.mark.parametrize("central", [False, True], ids=["scores", "scores times centerness"])
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
def test_what_stays_is_what_loops_over_all_candidates_leave(rule, central):
    predictions = random_predictions((60, 30, 8, 2, 1), 3, central=central)
    found = detections(predictions, (64, 48), UNIT, rule)
    expected = selected(predictions, (64, 48), rule)
    assert len(expected) > 5
    assert found.labels.tolist() == [label for _, label, _ in expected]
    assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected], abs=1e-6)
    for box, (_, _, other) in zip(found.boxes.tolist(), expected, strict=True):
        assert box == pytest.approx(other, abs=1e-4)


def one_level(anchors, logits, centerness=None):
    anchors = torch.tensor(anchors, dtype=torch.float32)
    central = [] if centerness is None else [torch.tensor(centerness)]
    return Predictions([anchors], [torch.tensor(logits)], [torch.zeros_like(anchors)], central)


def test_an_anchor_may_give_a_detection_of_each_class():
    predictions = one_level([[2, 2, 9, 9]], [[0.0, 1.0]])
    found = detections(predictions, (16, 16), UNIT, Selection(before=9, nms=0.5, keep=9, score=0.1))
    assert found.labels.tolist() == [1, 0]
    assert found.boxes.tolist() == [[2, 2, 9, 9]] * 2
    only = Selection(before=1, nms=0.5, keep=9, score=0.1)  # a pair is a candidate, not an anchor
    assert detections(predictions, (16, 16), UNIT, only).labels.tolist() == [1]


def test_centerness_decides_between_boxes_but_not_whether_they_are_looked_at():
    rule = Selection(before=9, nms=0.5, keep=9, score=0.5)
    predictions = one_level([[0, 0, 9, 9], [0, 0, 9, 8]], [[3.0], [2.0]], [-4.0, 0.0])
    found = detections(predictions, (16, 16), UNIT, rule)
    assert found.boxes.tolist() == [[0, 0, 9, 8]]
    assert found.scores.item() == pytest.approx(0.5 / (1 + math.exp(-2)))  # below the rule's score


def test_a_score_at_the_bound_is_not_looked_at():
    rule = Selection(before=9, nms=0.5, keep=9, score=0.5)
    found = detections(one_level([[0, 0, 9, 9]], [[0.0]]), (16, 16), UNIT, rule)
    assert len(found.boxes) == len(found.scores) == len(found.labels) == 0
    assert found.boxes.shape == (0, 4)


def test_a_tower_is_convolutions_with_relu_and_with_groups_a_norm_between_them():
    plain, normed = tower(8, 2), tower(8, 2, 4)
    assert [type(each) for each in plain] == [nn.Conv2d, nn.ReLU] * 2
    assert [type(each) for each in normed] == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 2
    assert plain[0].bias is not None and normed[0].bias is None and normed[1].num_groups == 4
    x = torch.randn(1, 8, 5, 7)
    assert plain(x).shape == x.shape and (normed(x) >= 0).all()


def test_a_head_starts_with_small_weights_and_rare_classes():
    torch.manual_seed(0)
    head = nn.ModuleDict(
        {"tower": tower(64, 2), "classes": nn.Conv2d(64, 30, 3), "boxes": tower(64, 1)}
    )
    initialise(head, head["classes"])
    for name, each in head.named_parameters():
        if name.endswith("weight"):
            assert each.mean().abs() < 5e-4 and each.std().item() == pytest.approx(0.01, rel=0.05)
        elif name != "classes.bias":
            assert not each.any()
    assert head["classes"].bias.sigmoid().allclose(torch.tensor(0.01))


def test_predictions_of_half_precision_become_single():
    model = small(RetinaNetDetector, "retinanet", classes=2)
    half = [[x.bfloat16() for x in numbered(1, (64, 64), n)] for n in (18, 36, 9)]
    (each,) = model.predictions(Maps(*half), [(64, 64)])
    found = detections(each, (64, 64), UNIT, model.test)
    for tensor in (*each.logits, *each.offsets, *each.centerness, found.boxes, found.scores):
        assert tensor.dtype == torch.float32
