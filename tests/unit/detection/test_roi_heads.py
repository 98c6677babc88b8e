"""Sampling of regions, and box and mask heads: sizes, initial weights and losses."""

import math

import pytest
import torch

from smt.config.heads import Matching, Sampling
from smt.detection.roi_heads import (
    BoxHead,
    MaskHead,
    Proposals,
    Regions,
    box_losses,
    positive_rows,
    sample_regions,
)
from tests.helpers.dense_scenes import head, iou, parameter_count, target
from tests.helpers.two_stage_scenes import decode, encode

HALF = Matching(positive=0.5, negative=0.5, low_quality=None)
SCENE = target([[10, 10, 30, 30], [40, 40, 60, 60]], [4, 2], (64, 64))
PROPOSALS = torch.tensor(
    [[10.0, 10, 30, 28], [0, 0, 9, 9], [41, 40, 60, 60], [30, 30, 50, 50], [10, 12, 30, 42]]
)


def regions_of(proposals, scene, *rules, usable=None):
    """Return the regions of one image."""
    (regions,) = sample_regions([Proposals(proposals, usable)], [scene], *rules)
    return regions


def test_regions_are_proposals_and_ground_truth_boxes():
    regions = regions_of(PROPOSALS, SCENE, HALF, Sampling(boxes=100, positive=1.0), 7)
    # IoUs with their best objects: 360/400, 0, 380/400, 100/700 and 360/640.
    positive = {
        (10.0, 10.0, 30.0, 30.0): (0, 4, True),
        (40.0, 40.0, 60.0, 60.0): (1, 2, True),
        (10.0, 10.0, 30.0, 28.0): (0, 4, False),
        (41.0, 40.0, 60.0, 60.0): (1, 2, False),
        (10.0, 12.0, 30.0, 42.0): (0, 4, False),
    }
    assert len(regions.objects) == 5 and len(regions.boxes) == 7
    sampled = zip(
        map(tuple, regions.boxes.tolist()),
        regions.objects.tolist(),
        regions.labels.tolist(),
        regions.is_ground_truth.tolist(),
        strict=False,  # background has no object
    )
    assert {box: values for box, *values in sampled} == {
        box: [*values] for box, values in positive.items()
    }
    assert regions.labels[5:].tolist() == [7, 7] and not regions.is_ground_truth[5:].any()
    assert {tuple(box) for box in regions.boxes[5:].tolist()} == {(0, 0, 9, 9), (30, 30, 50, 50)}


def test_ground_truth_boxes_are_added_after_the_matching():
    # The IoU of the proposal is 0.8 with object 0 and 0.64 with object 1. It is the best proposal
    # of object 1, hence its low-quality match. If the ground-truth boxes were matched too, the box
    # of object 1 would be the best.
    scene = target([[0, 0, 20, 20], [0, 0, 10.24, 20]], [0, 1], (64, 64))
    proposal = torch.tensor([[0.0, 0, 16, 20]])
    low_quality = Matching(positive=0.5, negative=0.5, low_quality=0.5)
    regions = regions_of(proposal, scene, low_quality, Sampling(boxes=9, positive=1.0), 2)
    assert regions.labels[~regions.is_ground_truth].tolist() == [1]
    without_low_quality = regions_of(proposal, scene, HALF, Sampling(boxes=9, positive=1.0), 2)
    assert without_low_quality.labels[~without_low_quality.is_ground_truth].tolist() == [0]


def test_unusable_proposals_are_not_sampled():
    all_boxes, usable = (
        Sampling(boxes=100, positive=1.0),
        torch.tensor([False, True, True, True, False]),
    )
    regions = regions_of(PROPOSALS, SCENE, HALF, all_boxes, 7, usable=usable)
    expected = regions_of(PROPOSALS[usable], SCENE, HALF, all_boxes, 7)
    assert len(regions.boxes) == 5
    for name in ("boxes", "labels", "objects", "is_ground_truth"):
        assert torch.equal(getattr(regions, name), getattr(expected, name))


def test_at_most_a_quarter_of_the_regions_are_positive():
    proposals = torch.cat([PROPOSALS[[0]].repeat(50, 1), PROPOSALS[[1]].repeat(50, 1)])
    regions = regions_of(proposals, SCENE, HALF, Sampling(boxes=16, positive=0.25), 7)
    assert len(regions.objects) == 4 and len(regions.boxes) == len(regions.labels) == 16
    assert (regions.labels[:4] != 7).all() and (regions.labels[4:] == 7).all()


@pytest.mark.parametrize("scene", [SCENE, target([], [], (64, 64))])
@pytest.mark.parametrize("count", [0, 5])
def test_regions_without_objects_or_proposals(scene, count):
    all_boxes = Sampling(boxes=100, positive=1.0)
    regions = regions_of(PROPOSALS[:count], scene, HALF, all_boxes, 7)
    assert len(regions.boxes) == len(scene.boxes) + count
    assert regions.is_ground_truth.sum() == len(scene.boxes)
    if not len(scene.boxes):
        assert regions.labels.tolist() == [7] * count and regions.objects.shape == (0,)


def box_head(name, *, channels=256, classes=80):
    spec = head(name)
    return BoxHead(spec.box, channels=channels, resolution=spec.resolution, classes=classes)


def mask_head(*, channels=256, classes=80):
    return MaskHead(head("mask_rcnn").mask, channels=channels, classes=classes)


def test_parameter_counts_by_hand():
    # 12,544 x 1024 + 1024, 1024 x 1024 + 1024, 81 and 320 of 1024 + 1
    assert parameter_count(box_head("mask_rcnn")) == 12_846_080 + 1_049_600 + 401 * 1025  # 14.307M
    # 4 x (9 x 256 x 256 + 2 x 256), then the first of those layers
    assert parameter_count(box_head("cascade_mask_rcnn")) == 2_361_344 + 12_846_080 + 401 * 1025
    # 4 x (9 x 256 x 256 + 256), 4 x 256 x 256 + 256, 80 of 256 + 1
    assert parameter_count(mask_head()) == 2_360_320 + 262_400 + 80 * 257  # 2.643M


def test_output_shapes_of_heads():
    for name in ("mask_rcnn", "cascade_mask_rcnn"):
        for count in (0, 3):
            logits, offsets = box_head(name, channels=4, classes=5)(torch.randn(count, 4, 7, 7))
            assert logits.shape == (count, 6) and offsets.shape == (count, 5, 4)
    assert mask_head(channels=4, classes=5)(torch.randn(3, 4, 14, 14)).shape == (3, 5, 28, 28)


def test_convolutions_of_cascade_have_sync_batch_norm_and_no_bias():
    kinds = [type(layer).__name__ for layer in box_head("cascade_mask_rcnn").convolutions]
    assert kinds == ["Conv2d", "SyncBatchNorm", "ReLU"] * 4
    assert box_head("cascade_mask_rcnn").convolutions[0].bias is None
    assert len(box_head("mask_rcnn").convolutions) == 0


def test_initial_weights_follow_the_reference():
    torch.manual_seed(0)
    boxes, masks = box_head("cascade_mask_rcnn"), mask_head()
    bound = math.sqrt(6 / (256 * 49 + 1024))  # Xavier's uniform distribution
    assert boxes.layers[0].weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert boxes.layers[0].weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    deviations = {
        boxes.classifier: 0.01,
        boxes.regression: 0.001,
        # He's, of fan out 256 x 9, 256 x 4 and 80
        boxes.convolutions[0]: math.sqrt(2 / 2304),
        masks.convolutions[6]: math.sqrt(2 / 2304),
        masks.upsample[0]: math.sqrt(2 / 1024),
        masks.masks: math.sqrt(2 / 80),
    }
    for layer, deviation in deviations.items():
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.02)
        assert layer.bias is None or not layer.bias.any()


def giou(one, other):
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(area) / (1 + iou(one, other))  # iou = overlap / union, overlap + union = sum
    width = max(one[2], other[2]) - min(one[0], other[0])
    height = max(one[3], other[3]) - min(one[1], other[1])
    return iou(one, other) - (width * height - union) / (width * height)


def regions_with(*arguments):
    """Return the regions of an image, of boxes, labels and objects."""
    boxes, labels, objects = (torch.tensor(values) for values in arguments)
    is_ground_truth = torch.zeros(len(boxes), dtype=torch.bool)
    return Regions(boxes.view(-1, 4).float(), labels.long(), objects.long(), is_ground_truth)


SCENES = [SCENE, target([], [], (64, 64)), target([[5, 5, 25, 40]], [1], (64, 64))]
REGIONS = [
    regions_with(
        [[41, 40, 60, 60], [10, 10, 30, 28], [12, 8, 33, 30], [0, 0, 9, 9]], [2, 4, 4, 5], [1, 0, 0]
    ),
    regions_with([[3, 3, 20, 20]], [5], []),
    regions_with([[4, 6, 24, 42], [30, 30, 50, 50], [1, 1, 64, 64]], [1, 5, 5], [0]),
]
STAGE = (0.1, 0.1, 0.2, 0.2)


def test_positive_regions_are_first_in_each_image():
    assert positive_rows(REGIONS).tolist() == [0, 1, 2, 5]


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn"])
def test_losses_are_averaged_over_regions(name):
    torch.manual_seed(0)
    spec = head(name).box
    logits, offsets = torch.randn(8, 6), torch.randn(8, 5, 4)
    class_loss, box_loss, row = 0.0, 0.0, 0
    for regions, scene in zip(REGIONS, SCENES, strict=True):
        for index, (box, label) in enumerate(
            zip(regions.boxes.tolist(), regions.labels.tolist(), strict=True)
        ):
            values = logits[row].tolist()
            class_loss += math.log(sum(map(math.exp, values))) - values[label]
            if label < 5:
                object_box = scene.boxes[regions.objects[index]].tolist()
                predicted = offsets[row, label].tolist()
                if name == "mask_rcnn":
                    expected = [a / b for a, b in zip(encode(object_box, box), STAGE, strict=True)]
                    box_loss += sum(abs(a - b) for a, b in zip(predicted, expected, strict=True))
                else:
                    refined = decode(box, [a * b for a, b in zip(predicted, STAGE, strict=True)])
                    box_loss += 10 * (1 - giou(refined, object_box))
            row += 1
    losses = box_losses(logits, offsets, REGIONS, SCENES, spec, STAGE)
    assert losses["class"].item() == pytest.approx(class_loss / 8, rel=1e-5)
    assert losses["box"].item() == pytest.approx(box_loss / 8, rel=1e-5)


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn"])
@pytest.mark.parametrize("count", [1, 0])
def test_without_objects_or_regions_losses_are_finite_with_a_gradient(name, count):
    layer = box_head(name, channels=4, classes=5)
    logits, offsets = layer(torch.randn(count, 4, 7, 7))
    regions = [REGIONS[1] if count else regions_with([], [], [])]
    losses = box_losses(logits, offsets, regions, [SCENES[1]], head(name).box, STAGE)
    sum(losses.values()).backward()
    assert losses["box"] == 0 and losses["class"].isfinite()
    assert all(parameter.grad is not None for parameter in layer.parameters())
