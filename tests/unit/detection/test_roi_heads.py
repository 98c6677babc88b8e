"""Regions: which of them are looked at, by heads of what size, and what these learn."""

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
from tests.helpers.dense_scenes import head, iou, parameters, target
from tests.helpers.two_stage_scenes import decoded, encoded

HALF = Matching(positive=0.5, negative=0.5, low_quality=None)
SCENE = target([[10, 10, 30, 30], [40, 40, 60, 60]], [4, 2], (64, 64))
PROPOSALS = torch.tensor(
    [[10.0, 10, 30, 28], [0, 0, 9, 9], [41, 40, 60, 60], [30, 30, 50, 50], [10, 12, 30, 42]]
)


def regions_of(proposals, scene, *rules, usable=None):
    """Return the regions of one image."""
    (regions,) = sample_regions([Proposals(proposals, usable)], [scene], *rules)
    return regions


def test_regions_are_proposals_and_the_objects_themselves():
    regions = regions_of(PROPOSALS, SCENE, HALF, Sampling(boxes=100, positive=1.0), 7)
    # Overlaps 360/400, 0, 380/400, 100/700 and 360/640 of their best objects.
    positive = {
        (10.0, 10.0, 30.0, 30.0): (0, 4, True),
        (40.0, 40.0, 60.0, 60.0): (1, 2, True),
        (10.0, 10.0, 30.0, 28.0): (0, 4, False),
        (41.0, 40.0, 60.0, 60.0): (1, 2, False),
        (10.0, 12.0, 30.0, 42.0): (0, 4, False),
    }
    assert len(regions.objects) == 5 and len(regions.boxes) == 7
    found = zip(
        map(tuple, regions.boxes.tolist()),
        regions.objects.tolist(),
        regions.labels.tolist(),
        regions.is_ground_truth.tolist(),
        strict=False,  # background has no object
    )
    assert {box: rest for box, *rest in found} == {box: [*rest] for box, rest in positive.items()}
    assert regions.labels[5:].tolist() == [7, 7] and not regions.is_ground_truth[5:].any()
    assert {tuple(each) for each in regions.boxes[5:].tolist()} == {(0, 0, 9, 9), (30, 30, 50, 50)}


def test_objects_join_after_the_matching():
    # The proposal overlaps object 0 by 0.8 and object 1 by 0.64, for which there is none better:
    # by the rule for low quality it finds object 1. Beside object 1's own box it would not.
    scene = target([[0, 0, 20, 20], [0, 0, 10.24, 20]], [0, 1], (64, 64))
    proposal = torch.tensor([[0.0, 0, 16, 20]])
    low = Matching(positive=0.5, negative=0.5, low_quality=0.5)
    regions = regions_of(proposal, scene, low, Sampling(boxes=9, positive=1.0), 2)
    assert regions.labels[~regions.is_ground_truth].tolist() == [1]
    without = regions_of(proposal, scene, HALF, Sampling(boxes=9, positive=1.0), 2)
    assert without.labels[~without.is_ground_truth].tolist() == [0]


def test_what_is_not_usable_is_no_region():
    every, usable = (
        Sampling(boxes=100, positive=1.0),
        torch.tensor([False, True, True, True, False]),
    )
    regions = regions_of(PROPOSALS, SCENE, HALF, every, 7, usable=usable)
    fewer = regions_of(PROPOSALS[usable], SCENE, HALF, every, 7)
    assert len(regions.boxes) == 5
    for name in ("boxes", "labels", "objects", "is_ground_truth"):
        assert torch.equal(getattr(regions, name), getattr(fewer, name))


def test_a_quarter_of_the_regions_at_most_find_objects():
    proposals = torch.cat([PROPOSALS[[0]].repeat(50, 1), PROPOSALS[[1]].repeat(50, 1)])
    regions = regions_of(proposals, SCENE, HALF, Sampling(boxes=16, positive=0.25), 7)
    assert len(regions.objects) == 4 and len(regions.boxes) == len(regions.labels) == 16
    assert (regions.labels[:4] != 7).all() and (regions.labels[4:] == 7).all()


@pytest.mark.parametrize("scene", [SCENE, target([], [], (64, 64))])
@pytest.mark.parametrize("count", [0, 5])
def test_regions_without_objects_or_without_proposals(scene, count):
    every = Sampling(boxes=100, positive=1.0)
    regions = regions_of(PROPOSALS[:count], scene, HALF, every, 7)
    assert len(regions.boxes) == len(scene.boxes) + count
    assert regions.is_ground_truth.sum() == len(scene.boxes)
    if not len(scene.boxes):
        assert regions.labels.tolist() == [7] * count and regions.objects.shape == (0,)


def box_head(name, *, channels=256, classes=80):
    spec = head(name)
    return BoxHead(spec.box, channels=channels, resolution=spec.resolution, classes=classes)


def mask_head(*, channels=256, classes=80):
    return MaskHead(head("mask_rcnn").mask, channels=channels, classes=classes)


def test_sizes_of_the_heads_are_the_papers():
    # 12,544 x 1024 + 1024, 1024 x 1024 + 1024, 81 and 320 of 1024 + 1
    assert parameters(box_head("mask_rcnn")) == 12_846_080 + 1_049_600 + 401 * 1025  # 14.307M
    # 4 x (9 x 256 x 256 + 2 x 256), then the first of those layers
    assert parameters(box_head("cascade_mask_rcnn")) == 2_361_344 + 12_846_080 + 401 * 1025
    # 4 x (9 x 256 x 256 + 256), 4 x 256 x 256 + 256, 80 of 256 + 1
    assert parameters(mask_head()) == 2_360_320 + 262_400 + 80 * 257  # 2.643M


def test_heads_give_background_last_a_box_for_each_class_and_masks_twice_as_large():
    for name in ("mask_rcnn", "cascade_mask_rcnn"):
        for count in (0, 3):
            logits, offsets = box_head(name, channels=4, classes=5)(torch.randn(count, 4, 7, 7))
            assert logits.shape == (count, 6) and offsets.shape == (count, 5, 4)
    assert mask_head(channels=4, classes=5)(torch.randn(3, 4, 14, 14)).shape == (3, 5, 28, 28)


def test_the_cascades_convolutions_have_synchronised_norms_and_no_biases():
    kinds = [type(each).__name__ for each in box_head("cascade_mask_rcnn").convolutions]
    assert kinds == ["Conv2d", "SyncBatchNorm", "ReLU"] * 4
    assert box_head("cascade_mask_rcnn").convolutions[0].bias is None
    assert len(box_head("mask_rcnn").convolutions) == 0


def test_heads_start_as_the_reference_does():
    torch.manual_seed(0)
    boxes, masks = box_head("cascade_mask_rcnn"), mask_head()
    bound = math.sqrt(6 / (256 * 49 + 1024))  # Xavier's uniform distribution
    assert boxes.layers[0].weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert boxes.layers[0].weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    deviations = {
        boxes.classifier: 0.01,
        boxes.regression: 0.001,
        # He's, by outputs: 256 x 9, 256 x 4 and 80
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


def of_boxes(*arguments):
    """Return an image's regions: boxes, labels, objects."""
    boxes, labels, objects = (torch.tensor(each) for each in arguments)
    is_ground_truth = torch.zeros(len(boxes), dtype=torch.bool)
    return Regions(boxes.view(-1, 4).float(), labels.long(), objects.long(), is_ground_truth)


SCENES = [SCENE, target([], [], (64, 64)), target([[5, 5, 25, 40]], [1], (64, 64))]
REGIONS = [
    of_boxes(
        [[41, 40, 60, 60], [10, 10, 30, 28], [12, 8, 33, 30], [0, 0, 9, 9]], [2, 4, 4, 5], [1, 0, 0]
    ),
    of_boxes([[3, 3, 20, 20]], [5], []),
    of_boxes([[4, 6, 24, 42], [30, 30, 50, 50], [1, 1, 64, 64]], [1, 5, 5], [0]),
]
STAGE = (0.1, 0.1, 0.2, 0.2)


def test_regions_that_find_objects_are_first_in_each_image():
    assert positive_rows(REGIONS).tolist() == [0, 1, 2, 5]


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn"])
def test_losses_are_sums_over_regions_over_their_number(name):
    torch.manual_seed(0)
    spec = head(name).box
    logits, offsets = torch.randn(8, 6), torch.randn(8, 5, 4)
    class_loss, of_box, row = 0.0, 0.0, 0
    for regions, scene in zip(REGIONS, SCENES, strict=True):
        for index, (box, label) in enumerate(
            zip(regions.boxes.tolist(), regions.labels.tolist(), strict=True)
        ):
            values = logits[row].tolist()
            class_loss += math.log(sum(map(math.exp, values))) - values[label]
            if label < 5:
                goal = scene.boxes[regions.objects[index]].tolist()
                own = offsets[row, label].tolist()
                if name == "mask_rcnn":
                    wanted = [a / b for a, b in zip(encoded(goal, box), STAGE, strict=True)]
                    of_box += sum(abs(a - b) for a, b in zip(own, wanted, strict=True))
                else:
                    moved = decoded(box, [a * b for a, b in zip(own, STAGE, strict=True)])
                    of_box += 10 * (1 - giou(moved, goal))
            row += 1
    losses = box_losses(logits, offsets, REGIONS, SCENES, spec, STAGE)
    assert losses["class"].item() == pytest.approx(class_loss / 8, rel=1e-5)
    assert losses["box"].item() == pytest.approx(of_box / 8, rel=1e-5)


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn"])
@pytest.mark.parametrize("count", [1, 0])
def test_without_objects_or_regions_losses_are_finite_with_a_gradient(name, count):
    layer = box_head(name, channels=4, classes=5)
    logits, offsets = layer(torch.randn(count, 4, 7, 7))
    regions = [REGIONS[1] if count else of_boxes([], [], [])]
    losses = box_losses(logits, offsets, regions, [SCENES[1]], head(name).box, STAGE)
    sum(losses.values()).backward()
    assert losses["box"] == 0 and losses["class"].isfinite()
    assert all(each.grad is not None for each in layer.parameters())
