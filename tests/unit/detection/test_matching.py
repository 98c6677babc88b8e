"""Which box is to find which object, which are drawn for a loss, and which of them stay."""

import itertools

import pytest
import torch
from torchvision.ops import batched_nms

from smt.config.heads import Matching, Sampling
from smt.detection.matching import BACKGROUND, LEFT_OUT, match, sample
from smt.detection.nms import multiclass_nms, suppress
from tests.helpers.two_stage_scenes import by_definition, kept_by_definition


def rule(positive=0.5, negative=0.4, low_quality=None):
    return Matching(positive=positive, negative=negative, low_quality=low_quality)


def matched(overlaps, *rules):
    return match(torch.tensor(overlaps), rule(*rules)).tolist()


OVERLAPS = [
    # 0: best of object 0; 1: better for object 1; 2: between; 3: below; 4: at the upper bound
    [0.80, 0.60, 0.45, 0.10, 0.50],
    [0.10, 0.70, 0.20, 0.39, 0.00],
]


def test_a_box_takes_the_object_that_it_overlaps_most_if_by_enough():
    assert matched(OVERLAPS, 0.5, 0.4) == [0, 1, LEFT_OUT, BACKGROUND, 0]


def test_the_bound_of_positives_is_inclusive_and_that_of_background_is_not():
    overlaps = [[0.5, 0.4, 0.25]]  # as floats, exactly the bounds
    assert matched(overlaps, 0.5, 0.25) == [0, LEFT_OUT, LEFT_OUT]
    assert matched(overlaps, 0.5, 0.5) == [0, BACKGROUND, BACKGROUND]


def test_the_bound_of_low_quality_is_inclusive():
    assert matched([[0.25, 0.125]], 0.5, 0.5, 0.25) == [0, BACKGROUND]


def test_an_object_that_nothing_finds_takes_its_best_boxes_all_of_them():
    overlaps = [[0.9, 0.2, 0.3, 0.3, 0.1], [0.3, 0.3, 0.35, 0.35, 0.0]]
    assert matched(overlaps, 0.7, 0.3) == [0, LEFT_OUT, LEFT_OUT, LEFT_OUT, BACKGROUND]
    # Boxes 2 and 3 overlap object 1 as much as its best one does.
    assert matched(overlaps, 0.7, 0.3, 0.3) == [0, LEFT_OUT, 1, 1, BACKGROUND]
    assert matched(overlaps, 0.7, 0.3, 0.36) == [0, LEFT_OUT, LEFT_OUT, LEFT_OUT, BACKGROUND]


def test_a_box_goes_to_the_object_whose_best_it_is_even_if_it_overlaps_another_more():
    overlaps = [[0.8, 0.9], [0.6, 0.1]]
    assert matched(overlaps, 0.5, 0.5) == [0, 0]
    assert matched(overlaps, 0.5, 0.5, 0.5) == [1, 0]


def test_the_later_object_has_a_box_that_is_best_for_two():
    assert matched([[0.4, 0.0], [0.4, 0.1], [0.2, 0.6]], 0.5, 0.3, 0.3) == [1, 2]


def test_an_object_that_nothing_touches_takes_nothing():
    assert matched([[0.0, 0.0], [0.2, 0.0]], 0.5, 0.4, 0.0) == [1, BACKGROUND]


@pytest.mark.parametrize("low_quality", [None, 0.0, 0.3])
def test_without_objects_all_is_background_and_without_boxes_nothing(low_quality):
    assert match(torch.empty(0, 3), rule(low_quality=low_quality)).tolist() == [BACKGROUND] * 3
    nothing = match(torch.empty(2, 0), rule(low_quality=low_quality))
    assert nothing.shape == (0,) and nothing.dtype == torch.int64
    assert match(torch.empty(0, 0), rule(low_quality=low_quality)).shape == (0,)


def test_a_box_that_is_not_usable_finds_nothing_and_is_no_object_s_best():
    overlaps = torch.tensor([[0.6, 0.9, 0.1, 0.0]])
    usable = torch.tensor([True, False, True, False])
    rules = rule(0.7, 0.3, 0.5)
    assert match(overlaps, rules).tolist() == [LEFT_OUT, 0, BACKGROUND, BACKGROUND]
    assert match(overlaps, rules, usable).tolist() == [0, LEFT_OUT, BACKGROUND, LEFT_OUT]
    assert match(overlaps[:0], rules, usable).tolist() == [
        BACKGROUND, LEFT_OUT, BACKGROUND, LEFT_OUT,
    ]  # fmt: skip


def test_matches_are_those_of_the_definition():
    torch.manual_seed(0)
    rules = [rule(0.7, 0.3, 0.3), rule(0.5, 0.5, 0.5), rule(0.5, 0.4, 0.0), rule(0.6, 0.6)]
    seen = set()
    for _, matching in itertools.product(range(100), rules):
        overlaps = torch.randint(11, (3, 12)).double() / 10  # ties are frequent
        matches = match(overlaps, matching).tolist()
        assert matches == by_definition(overlaps.tolist(), matching)
        seen.update(matches)
    assert seen == {LEFT_OUT, BACKGROUND, 0, 1, 2}


def drawn(positives, negatives, left_out, *, boxes=8, positive=0.25):
    """Return how many of each kind are drawn."""
    kinds = [0] * positives + [BACKGROUND] * negatives + [LEFT_OUT] * left_out
    matches = torch.tensor(kinds)[torch.randperm(len(kinds))]
    (chosen,) = sample([matches], Sampling(boxes=boxes, positive=positive))
    rows = torch.cat([chosen.positive, chosen.negative]).tolist()
    assert len(set(rows)) == len(rows)
    assert (matches[chosen.positive] >= 0).all()
    assert (matches[chosen.negative] == BACKGROUND).all()
    return len(chosen.positive), len(chosen.negative)


def test_background_fills_what_positives_leave():
    assert drawn(5, 20, 3) == (2, 6)  # a quarter of 8 at most
    assert drawn(1, 20, 3) == (1, 7)
    assert drawn(0, 20, 3) == (0, 8)
    assert drawn(5, 3, 20) == (2, 3)  # positives never fill what background leaves
    assert drawn(0, 0, 4) == (0, 0)
    assert drawn(9, 9, 0, boxes=7, positive=0.5) == (3, 4)  # 3.5 is rounded down


def test_images_are_sampled_one_after_another():
    few, many = torch.tensor([1, BACKGROUND, LEFT_OUT, 0]), torch.tensor([0, BACKGROUND] * 50)
    rules = Sampling(boxes=8, positive=0.25)
    torch.manual_seed(3)
    together = sample([few, many, many], rules)
    torch.manual_seed(3)
    for chosen, (alone,) in zip(
        together, [sample([each], rules) for each in (few, many, many)], strict=True
    ):
        assert torch.equal(chosen.positive, alone.positive)
        assert torch.equal(chosen.negative, alone.negative)
    assert together[0].positive.tolist() == [0, 3] and together[0].negative.tolist() == [1]


def test_every_box_is_drawn_as_often_as_another():
    torch.manual_seed(0)
    matches = torch.tensor([3] * 10 + [BACKGROUND] * 20)
    counts = torch.zeros(30)
    for _ in range(2000):
        (chosen,) = sample([matches], Sampling(boxes=8, positive=0.25))
        counts[chosen.positive] += 1
        counts[chosen.negative] += 1
    # 2 of 10 and 6 of 20: 400 and 600 times, each within 5 standard deviations (18 and 21).
    assert (counts[:10] - 400).abs().max() < 90
    assert (counts[10:] - 600).abs().max() < 103


def test_draws_come_from_the_global_generator_alone():
    matches = torch.tensor([0] * 50 + [BACKGROUND] * 50)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        (chosen,) = sample([matches], Sampling(boxes=20, positive=0.5))
        draws.append(torch.cat([chosen.positive, chosen.negative]).tolist())
    assert draws[0] == draws[1] != draws[2]


def clustered(count):
    """Return boxes (count, 4) float32 about three places, so that many overlap."""
    corner = torch.randint(3, (count, 1)) * 30.0 + torch.rand(count, 2) * 8
    return torch.cat([corner, corner + 10 + torch.rand(count, 2) * 10], dim=1)


def test_the_strongest_of_each_group_stay():
    torch.manual_seed(0)
    boxes, scores, groups = clustered(60), torch.rand(60), torch.randint(3, (60,))
    expected = kept_by_definition(
        boxes.double().tolist(), scores.tolist(), groups.tolist(), nms=0.4
    )
    assert 9 <= len(expected) < 40
    kept = suppress(boxes, scores, groups, nms=0.4, keep=100).tolist()
    assert kept == expected
    assert suppress(boxes, scores, groups, nms=0.4, keep=7).tolist() == expected[:7]


@pytest.mark.parametrize("count", [0, 1, 7, 1000, 1001])
def test_the_same_stay_as_by_torchvision(count):
    torch.manual_seed(0)
    boxes, scores, groups = clustered(count), torch.rand(count), torch.randint(5, (count,))
    expected = batched_nms(boxes, scores, groups, 0.5)
    assert torch.equal(suppress(boxes, scores, groups, nms=0.5, keep=2000), expected)


def multiclass_by_definition(boxes, scores, factors, *, score, nms, keep):
    """Return (row, label, score) of what stays."""
    found = [
        (row, label, scores[row][label] * factors[row])
        for row in range(len(scores))
        for label in range(len(scores[0]))
        if scores[row][label] > score
    ]
    kept = kept_by_definition(
        [boxes[row][label] for row, label, _ in found],
        [each for _, _, each in found],
        [label for _, label, _ in found],
        nms,
    )
    return [found[each] for each in kept][:keep]


@pytest.mark.parametrize("own_boxes", [False, True], ids=["shared", "of each class"])
@pytest.mark.parametrize("factored", [False, True], ids=["plain", "factors"])
@pytest.mark.parametrize("keep", [5, 100])
def test_classes_are_suppressed_each_by_itself(own_boxes, factored, keep):
    torch.manual_seed(1)
    count, classes = 30, 4
    boxes = clustered(count)
    if own_boxes:
        boxes = boxes[:, None] + torch.rand(count, classes, 4) * 6
    scores = torch.rand(count, classes).square()
    factors = torch.rand(count) if factored else None
    rules = {"score": 0.1, "nms": 0.5, "keep": keep}
    every = boxes if own_boxes else boxes[:, None].expand(-1, classes, -1)
    expected = multiclass_by_definition(
        every.double().tolist(),
        scores.tolist(),
        factors.tolist() if factored else [1.0] * count,
        **rules,
    )
    kept_boxes, kept_scores, labels, rows = multiclass_nms(boxes, scores, factors=factors, **rules)
    assert list(zip(rows.tolist(), labels.tolist(), strict=True)) == [each[:2] for each in expected]
    assert kept_scores.tolist() == pytest.approx([each[2] for each in expected])
    assert torch.equal(kept_boxes, every[rows, labels])


def test_the_bound_of_scores_is_exclusive_and_precedes_the_factors():
    boxes = torch.tensor([[0.0, 0, 4, 4], [10, 10, 14, 14], [20, 20, 24, 24]])
    scores = torch.tensor([[0.25], [0.5], [0.75]])
    found = multiclass_nms(
        boxes, scores, score=0.25, nms=0.5, keep=9, factors=torch.tensor([4.0, 0.1, 0.01])
    )
    assert found[3].tolist() == [1, 2]  # 0.05 and 0.0075 stay although they are below the bound
    assert found[1].tolist() == pytest.approx([0.05, 0.0075])


def test_nothing_comes_of_nothing():
    for boxes in (torch.empty(0, 4), torch.empty(0, 3, 4)):
        found = multiclass_nms(boxes, torch.empty(0, 3), score=0.05, nms=0.5, keep=10)
        assert [each.shape[0] for each in found] == [0] * 4
    found = multiclass_nms(torch.rand(5, 4), torch.zeros(5, 3), score=0.05, nms=0.5, keep=10)
    assert found[0].shape == (0, 4) and found[2].dtype == found[3].dtype == torch.int64
