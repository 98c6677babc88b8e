"""The Hungarian matcher against all assignments by brute force, and its costs by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smt.config.heads import SetWeights
from smt.detection.hungarian import costs, focal_cost, match_all, relative
from smt.detection.losses import focal_loss, giou_loss
from smt.detection.structures import Target

SIZE = (50, 100)  # height, width
WEIGHTS = SetWeights(classes=2, l1=5, giou=3)
FOCAL = {"alpha": 0.25, "gamma": 2.0}


def target_of(boxes, labels, size=SIZE):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(boxes, torch.tensor(labels, dtype=torch.int64), size)


def match(cost):
    """Return the matched rows and columns of one cost matrix."""
    return match_all([cost])[0]


def least_cost(cost):
    """Return the least total cost over all one-to-one assignments."""
    rows, columns = cost.shape
    if rows < columns:
        return least_cost(cost.T)
    return min(
        sum(float(cost[row, column]) for column, row in enumerate(assignment))
        for assignment in itertools.permutations(range(rows), columns)
    )


@settings(max_examples=100, deadline=None)
@given(queries=st.integers(1, 6), objects=st.integers(0, 6), seed=st.integers(0, 2**20))
def test_no_assignment_is_cheaper(queries, objects, seed):
    cost = torch.randn(queries, objects, generator=torch.Generator().manual_seed(seed))
    rows, columns = match(cost)
    assert rows.dtype == columns.dtype == torch.int64
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == len(set(columns.tolist())) == min(queries, objects)
    assert float(cost[rows, columns].sum()) == pytest.approx(least_cost(cost), abs=1e-5)


def test_matching_is_not_greedy():
    cost = torch.tensor([[1.0, 2.0], [2.0, 9.0], [8.0, 8.0]])  # both are cheapest in row 0
    assert [indices.tolist() for indices in match(cost)] == [[0, 1], [1, 0]]


def test_several_cost_matrices_are_matched_independently():
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in [(5, 3), (5, 0), (2, 4), (7, 1)]]
    for joint, cost in zip(match_all(matrices), matrices, strict=True):
        single = match(cost)
        assert torch.equal(joint[0], single[0]) and torch.equal(joint[1], single[1])


def test_images_without_objects_match_nothing():
    pairs = match_all([torch.empty(4, 0), torch.empty(4, 0)])
    assert [(len(rows), rows.dtype) for rows, _ in pairs] == [(0, torch.int64)] * 2


def test_the_cost_by_hand():
    # Probabilities .2 and .9; half of the first box is outside the object.
    logits = torch.logit(torch.tensor([[0.2, 0.9], [0.9, 0.2]]))
    boxes = torch.tensor([[10.0, 10.0, 30.0, 20.0], [20.0, 10.0, 40.0, 20.0]])
    target = target_of([[20, 10, 40, 20]], [1])
    cost = costs(logits, boxes, target, WEIGHTS, coordinates="xyxy", **FOCAL)
    confident = 0.25 * 0.1**2 * -math.log(0.9) - 0.75 * 0.9**2 * -math.log(0.1)
    uncertain = 0.25 * 0.8**2 * -math.log(0.2) - 0.75 * 0.2**2 * -math.log(0.8)
    # IoU 1/3; the enclosing box, 30 x 10, is the union; both x differ by 10 of 100 pixels.
    expected = [[2 * confident + 5 * 0.2 - 3 / 3], [2 * uncertain + 5 * 0.0 - 3 * 1.0]]
    assert torch.allclose(cost, torch.tensor(expected), atol=1e-6)


def test_giou_cost_of_disjoint_boxes_by_hand():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    target = target_of([[30, 0, 40, 10]], [0])
    weights = SetWeights(classes=0, l1=0, giou=1)
    cost = costs(torch.zeros(1, 1), boxes, target, weights, coordinates="xyxy", **FOCAL)
    assert cost.item() == pytest.approx(0.5)  # 200 of the 400 enclosed pixels are in neither


@pytest.mark.parametrize(
    ("coordinates", "distance"),
    [
        ("xyxy", 0.2 + 0.1 + 0.4 + 0.3),  # x1 x2 over 100, y1 y2 over 50
        ("cxcywh", 0.3 + 0.2 + 0.2 + 0.2),
    ],
)
def test_l1_cost_is_relative_to_the_image_size(coordinates, distance):
    boxes = torch.tensor([[10.0, 10.0, 30.0, 20.0]])
    target = target_of([[30, 15, 70, 35]], [0])
    weights = SetWeights(classes=0, l1=1, giou=0)
    cost = costs(torch.zeros(1, 1), boxes, target, weights, coordinates=coordinates, **FOCAL)
    assert cost.item() == pytest.approx(distance)


def test_focal_cost_is_the_difference_of_focal_losses():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3).double() * 3, torch.tensor([2, 0, 2, 1])
    for query, logit in enumerate(logits):
        absent = focal_loss(logit[None], torch.tensor([3]), **FOCAL)
        for column, label in enumerate(labels):
            present = focal_loss(logit[None], label[None], **FOCAL)
            cost = focal_cost(logits, labels, **FOCAL)[query, column]
            assert float(cost) == pytest.approx(float(present - absent), rel=1e-4, abs=1e-6)


def test_relative_boxes_by_hand():
    boxes = torch.tensor([[10.0, 10.0, 30.0, 20.0]])
    assert relative(boxes, SIZE, "xyxy").tolist() == [pytest.approx([0.1, 0.2, 0.3, 0.4])]
    assert relative(boxes, SIZE, "cxcywh").tolist() == [pytest.approx([0.2, 0.3, 0.2, 0.2])]


def test_saturated_logits_have_a_finite_cost():
    logits = torch.tensor([[-1e4], [1e4]])
    assert focal_cost(logits, torch.tensor([0]), **FOCAL).isfinite().all()


def test_costs_are_exact_under_autocast_and_have_no_gradient():
    torch.manual_seed(0)
    logits = torch.randn(4, 2, requires_grad=True)
    boxes = torch.tensor([[0.0, 0.0, 801.3, 401.7]] * 4, requires_grad=True)
    target = target_of([[3, 5, 777, 399]], [1], (800, 1333))
    plain = costs(logits, boxes, target, WEIGHTS, coordinates="xyxy", **FOCAL)
    with torch.autocast("cpu", torch.bfloat16):
        cast = costs(logits, boxes, target, WEIGHTS, coordinates="xyxy", **FOCAL)
    assert torch.equal(plain, cast) and not plain.requires_grad


def test_the_cost_of_bfloat16_logits_is_computed_in_float32():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 2).bfloat16(), torch.tensor([1, 0])
    half, full = (focal_cost(x, labels, **FOCAL) for x in (logits, logits.float()))
    assert half.dtype is torch.float32 and torch.equal(half, full)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_costs_are_matched_first(value):
    cost = torch.tensor([[-100.0, -90.0], [50.0, 1e30], [-80.0, -95.0]])
    cost[1, 0] = value
    assert [indices.tolist() for indices in match(cost)] == [[1, 2], [0, 1]]
    # The remaining pair costs 10, where the other assignment would cost -20.
    expensive = torch.tensor([[value, -10.0], [-10.0, 10.0]])
    assert [indices.tolist() for indices in match(expensive)] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_the_loss_of_a_diverged_model_is_not_finite(where, value):
    logits, boxes = torch.zeros(3, 2), torch.tensor([[10.0, 10.0, 30.0, 20.0]] * 3)
    {"logits": logits, "boxes": boxes}[where][1, 0] = value
    target = target_of([[10, 10, 30, 20]], [0])
    cost = costs(logits, boxes, target, WEIGHTS, coordinates="xyxy", **FOCAL)
    queries, objects = match(cost)
    labels = torch.full((3,), 2)
    labels[queries] = target.labels[objects]
    loss = focal_loss(logits, labels, **FOCAL)
    loss = loss + giou_loss(boxes[queries], target.boxes[objects]).sum()
    loss = loss + (boxes[queries] - target.boxes[objects]).abs().sum()
    assert not loss.isfinite()


def test_a_matrix_of_non_finite_costs_is_matched():
    queries, objects = match(torch.full((4, 2), math.nan))
    assert len(queries) == len(set(objects.tolist())) == 2
