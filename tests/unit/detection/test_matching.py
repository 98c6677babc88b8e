"""Matching of boxes to objects by IoU, sampling for losses, and non-maximum suppression."""

import itertools

import pytest
import torch
from torchvision.ops import batched_nms

from smt.config.heads import Matching, Sampling
from smt.detection.matching import BACKGROUND, LEFT_OUT, match, sample
from smt.detection.nms import multiclass_nms, suppress
from tests.helpers.two_stage_scenes import match_by_loop, nms_by_loop


def matching_rule(positive=0.5, negative=0.4, low_quality=None):
    return Matching(positive=positive, negative=negative, low_quality=low_quality)


def matches_of(overlaps, *rules):
    return match(torch.tensor(overlaps), matching_rule(*rules)).tolist()


OVERLAPS = [
    # box 0: best of object 0; 1: best of object 1; 2: between thresholds; 3: below; 4: at 0.5
    [0.80, 0.60, 0.45, 0.10, 0.50],
    [0.10, 0.70, 0.20, 0.39, 0.00],
]


def test_a_box_matches_the_object_of_highest_iou_above_the_threshold():
    assert matches_of(OVERLAPS, 0.5, 0.4) == [0, 1, LEFT_OUT, BACKGROUND, 0]


def test_the_positive_threshold_is_inclusive_and_the_negative_one_exclusive():
    overlaps = [[0.5, 0.4, 0.25]]  # exact in floating point
    assert matches_of(overlaps, 0.5, 0.25) == [0, LEFT_OUT, LEFT_OUT]
    assert matches_of(overlaps, 0.5, 0.5) == [0, BACKGROUND, BACKGROUND]


def test_the_low_quality_threshold_is_inclusive():
    assert matches_of([[0.25, 0.125]], 0.5, 0.5, 0.25) == [0, BACKGROUND]


def test_an_unmatched_object_has_low_quality_matches_with_all_its_best_boxes():
    overlaps = [[0.9, 0.2, 0.3, 0.3, 0.1], [0.3, 0.3, 0.35, 0.35, 0.0]]
    assert matches_of(overlaps, 0.7, 0.3) == [0, LEFT_OUT, LEFT_OUT, LEFT_OUT, BACKGROUND]
    # Boxes 2 and 3 both have the highest IoU with object 1.
    assert matches_of(overlaps, 0.7, 0.3, 0.3) == [0, LEFT_OUT, 1, 1, BACKGROUND]
    assert matches_of(overlaps, 0.7, 0.3, 0.36) == [0, LEFT_OUT, LEFT_OUT, LEFT_OUT, BACKGROUND]


def test_a_low_quality_match_overrides_an_object_of_higher_iou():
    overlaps = [[0.8, 0.9], [0.6, 0.1]]
    assert matches_of(overlaps, 0.5, 0.5) == [0, 0]
    assert matches_of(overlaps, 0.5, 0.5, 0.5) == [1, 0]


def test_the_best_box_of_two_objects_matches_the_later_one():
    assert matches_of([[0.4, 0.0], [0.4, 0.1], [0.2, 0.6]], 0.5, 0.3, 0.3) == [1, 2]


def test_an_object_without_overlap_has_no_low_quality_match():
    assert matches_of([[0.0, 0.0], [0.2, 0.0]], 0.5, 0.4, 0.0) == [1, BACKGROUND]


@pytest.mark.parametrize("low_quality", [None, 0.0, 0.3])
def test_without_objects_every_box_is_background(low_quality):
    assert (
        match(torch.empty(0, 3), matching_rule(low_quality=low_quality)).tolist()
        == [BACKGROUND] * 3
    )
    no_boxes = match(torch.empty(2, 0), matching_rule(low_quality=low_quality))
    assert no_boxes.shape == (0,) and no_boxes.dtype == torch.int64
    assert match(torch.empty(0, 0), matching_rule(low_quality=low_quality)).shape == (0,)


def test_unusable_boxes_are_left_out_of_the_matching():
    overlaps = torch.tensor([[0.6, 0.9, 0.1, 0.0]])
    usable = torch.tensor([True, False, True, False])
    rules = matching_rule(0.7, 0.3, 0.5)
    assert match(overlaps, rules).tolist() == [LEFT_OUT, 0, BACKGROUND, BACKGROUND]
    assert match(overlaps, rules, usable).tolist() == [0, LEFT_OUT, BACKGROUND, LEFT_OUT]
    assert match(overlaps[:0], rules, usable).tolist() == [
        BACKGROUND, LEFT_OUT, BACKGROUND, LEFT_OUT,
    ]  # fmt: skip


def test_matches_equal_a_loop():
    torch.manual_seed(0)
    rules = [
        matching_rule(0.7, 0.3, 0.3),
        matching_rule(0.5, 0.5, 0.5),
        matching_rule(0.5, 0.4, 0.0),
        matching_rule(0.6, 0.6),
    ]
    seen = set()
    for _, matching in itertools.product(range(100), rules):
        overlaps = torch.randint(11, (3, 12)).double() / 10  # ties are frequent
        matches = match(overlaps, matching).tolist()
        assert matches == match_by_loop(overlaps.tolist(), matching)
        seen.update(matches)
    assert seen == {LEFT_OUT, BACKGROUND, 0, 1, 2}


def sampled_counts(positives, negatives, left_out, *, boxes=8, positive=0.25):
    """Return the numbers of sampled positives and negatives."""
    values = [0] * positives + [BACKGROUND] * negatives + [LEFT_OUT] * left_out
    matches = torch.tensor(values)[torch.randperm(len(values))]
    (sampled,) = sample([matches], Sampling(boxes=boxes, positive=positive))
    rows = torch.cat([sampled.positive, sampled.negative]).tolist()
    assert len(set(rows)) == len(rows)
    assert (matches[sampled.positive] >= 0).all()
    assert (matches[sampled.negative] == BACKGROUND).all()
    return len(sampled.positive), len(sampled.negative)


def test_negatives_fill_up_the_sample():
    assert sampled_counts(5, 20, 3) == (2, 6)  # at most a quarter of 8
    assert sampled_counts(1, 20, 3) == (1, 7)
    assert sampled_counts(0, 20, 3) == (0, 8)
    assert sampled_counts(5, 3, 20) == (2, 3)  # positives never replace missing negatives
    assert sampled_counts(0, 0, 4) == (0, 0)
    assert sampled_counts(9, 9, 0, boxes=7, positive=0.5) == (3, 4)  # 3.5 is rounded down


def test_a_batch_is_sampled_like_its_images_in_turn():
    few, many = torch.tensor([1, BACKGROUND, LEFT_OUT, 0]), torch.tensor([0, BACKGROUND] * 50)
    rules = Sampling(boxes=8, positive=0.25)
    torch.manual_seed(3)
    joint = sample([few, many, many], rules)
    torch.manual_seed(3)
    for sampled, (single,) in zip(
        joint, [sample([matches], rules) for matches in (few, many, many)], strict=True
    ):
        assert torch.equal(sampled.positive, single.positive)
        assert torch.equal(sampled.negative, single.negative)
    assert joint[0].positive.tolist() == [0, 3] and joint[0].negative.tolist() == [1]


def test_sampling_is_uniform():
    torch.manual_seed(0)
    matches = torch.tensor([3] * 10 + [BACKGROUND] * 20)
    counts = torch.zeros(30)
    for _ in range(2000):
        (sampled,) = sample([matches], Sampling(boxes=8, positive=0.25))
        counts[sampled.positive] += 1
        counts[sampled.negative] += 1
    # 2 of 10 and 6 of 20: 400 and 600 times, each within 5 standard deviations (18 and 21).
    assert (counts[:10] - 400).abs().max() < 90
    assert (counts[10:] - 600).abs().max() < 103


def test_sampling_follows_the_global_generator():
    matches = torch.tensor([0] * 50 + [BACKGROUND] * 50)
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        (sampled,) = sample([matches], Sampling(boxes=20, positive=0.5))
        samples.append(torch.cat([sampled.positive, sampled.negative]).tolist())
    assert samples[0] == samples[1] != samples[2]


def clustered_boxes(count):
    """Return boxes (count, 4) float32 around three points, so that many overlap."""
    corner = torch.randint(3, (count, 1)) * 30.0 + torch.rand(count, 2) * 8
    return torch.cat([corner, corner + 10 + torch.rand(count, 2) * 10], dim=1)


def test_nms_by_group_equals_a_loop():
    torch.manual_seed(0)
    boxes, scores, groups = clustered_boxes(60), torch.rand(60), torch.randint(3, (60,))
    expected = nms_by_loop(boxes.double().tolist(), scores.tolist(), groups.tolist(), nms=0.4)
    assert 9 <= len(expected) < 40
    kept = suppress(boxes, scores, groups, nms=0.4, keep=100).tolist()
    assert kept == expected
    assert suppress(boxes, scores, groups, nms=0.4, keep=7).tolist() == expected[:7]


@pytest.mark.parametrize("count", [0, 1, 7, 1000, 1001])
def test_nms_by_group_equals_torchvision(count):
    torch.manual_seed(0)
    boxes, scores, groups = clustered_boxes(count), torch.rand(count), torch.randint(5, (count,))
    expected = batched_nms(boxes, scores, groups, 0.5)
    assert torch.equal(suppress(boxes, scores, groups, nms=0.5, keep=2000), expected)


def multiclass_nms_by_loop(boxes, scores, factors, *, score, nms, keep):
    """Return (row, label, score) of the kept pairs, best first."""
    candidates = [
        (row, label, scores[row][label] * factors[row])
        for row in range(len(scores))
        for label in range(len(scores[0]))
        if scores[row][label] > score
    ]
    kept = nms_by_loop(
        [boxes[row][label] for row, label, _ in candidates],
        [index for _, _, index in candidates],
        [label for _, label, _ in candidates],
        nms,
    )
    return [candidates[index] for index in kept][:keep]


@pytest.mark.parametrize("own_boxes", [False, True], ids=["shared", "of each class"])
@pytest.mark.parametrize("factored", [False, True], ids=["plain", "factors"])
@pytest.mark.parametrize("keep", [5, 100])
def test_multiclass_nms_equals_a_loop(own_boxes, factored, keep):
    torch.manual_seed(1)
    count, classes = 30, 4
    boxes = clustered_boxes(count)
    if own_boxes:
        boxes = boxes[:, None] + torch.rand(count, classes, 4) * 6
    scores = torch.rand(count, classes).square()
    factors = torch.rand(count) if factored else None
    rules = {"score": 0.1, "nms": 0.5, "keep": keep}
    class_boxes = boxes if own_boxes else boxes[:, None].expand(-1, classes, -1)
    expected = multiclass_nms_by_loop(
        class_boxes.double().tolist(),
        scores.tolist(),
        factors.tolist() if factored else [1.0] * count,
        **rules,
    )
    kept_boxes, kept_scores, labels, rows = multiclass_nms(boxes, scores, factors=factors, **rules)
    assert list(zip(rows.tolist(), labels.tolist(), strict=True)) == [pair[:2] for pair in expected]
    assert kept_scores.tolist() == pytest.approx([pair[2] for pair in expected])
    assert torch.equal(kept_boxes, class_boxes[rows, labels])


def test_the_score_threshold_is_exclusive_and_ignores_the_factors():
    boxes = torch.tensor([[0.0, 0, 4, 4], [10, 10, 14, 14], [20, 20, 24, 24]])
    scores = torch.tensor([[0.25], [0.5], [0.75]])
    kept = multiclass_nms(
        boxes, scores, score=0.25, nms=0.5, keep=9, factors=torch.tensor([4.0, 0.1, 0.01])
    )
    assert kept[3].tolist() == [1, 2]  # 0.05 and 0.0075 are kept, although below 0.25
    assert kept[1].tolist() == pytest.approx([0.05, 0.0075])


def test_nms_of_no_boxes_or_no_scores_is_empty():
    for boxes in (torch.empty(0, 4), torch.empty(0, 3, 4)):
        kept = multiclass_nms(boxes, torch.empty(0, 3), score=0.05, nms=0.5, keep=10)
        assert [tensor.shape[0] for tensor in kept] == [0] * 4
    kept = multiclass_nms(torch.rand(5, 4), torch.zeros(5, 3), score=0.05, nms=0.5, keep=10)
    assert kept[0].shape == (0, 4) and kept[2].dtype == kept[3].dtype == torch.int64
