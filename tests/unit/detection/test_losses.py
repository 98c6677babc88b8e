"""Losses of detectors against the formulas of their papers."""

import math

import pytest
import torch

from smt.detection.losses import focal_loss, giou_loss
from tests.helpers.dense_scenes import focal


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.5)])
def test_focal_loss_is_the_sum_over_predictions_and_classes(alpha, gamma):
    torch.manual_seed(0)
    logits = 3 * torch.randn(6, 4, dtype=torch.float64)
    labels = torch.tensor([0, 3, 4, 4, 1, 2])  # 4 is background
    expected = sum(
        focal(float(logits[i, c]), c == labels[i], alpha, gamma) for i in range(6) for c in range(4)
    )
    loss = focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    assert loss.shape == () and math.isclose(float(loss), expected, rel_tol=1e-12)


def test_focal_loss_of_one_prediction_by_hand():
    # Probability 1/2 of both classes: 0.25 (1/2)^2 ln 2 for the positive class and
    # 0.75 (1/2)^2 ln 2 for the negative one.
    loss = focal_loss(double([0, 0]), torch.tensor([1]), alpha=0.25, gamma=2)
    assert math.isclose(float(loss), 0.25 * math.log(2))


def test_predictions_with_a_negative_label_are_ignored():
    logits = double([1, -2], [0.5, 3]).requires_grad_()
    loss = focal_loss(logits, torch.tensor([0, -1]), alpha=0.25, gamma=2)
    expected = focal_loss(logits[:1], torch.tensor([0]), alpha=0.25, gamma=2)
    loss.backward()
    assert torch.equal(loss, expected)
    assert logits.grad[0].abs().min() > 0 and not logits.grad[1].any()


def test_focal_loss_without_predictions_is_zero_with_a_gradient():
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = focal_loss(logits, torch.zeros(0, dtype=torch.int64), alpha=0.25, gamma=2)
    loss.backward()
    assert loss == 0 and logits.grad.shape == (0, 3)


def test_focal_loss_is_finite_for_saturated_logits():
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    losses = [focal_loss(logits, torch.tensor([c]), alpha=0.25, gamma=2) for c in (0, 1)]
    sum(losses).backward()
    assert losses[0] == 0 and losses[1].item() == pytest.approx(1e4)  # (0.25 + 0.75) 1e4
    assert logits.grad.isfinite().all()


def test_bfloat16_losses_are_computed_in_float32():
    # In bfloat16 1 - p of a probability below 1/512 is 1, and a sum stops growing at 256 terms.
    logits = torch.full((3000, 1), -7.0, dtype=torch.bfloat16)
    loss = focal_loss(logits, torch.zeros(3000, dtype=torch.int64), alpha=0.25, gamma=2)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(3000 * focal(-7, True, 0.25, 2), rel=1e-4)
    boxes = torch.tensor([[0, 0, 256, 256]], dtype=torch.bfloat16)
    loss = giou_loss(boxes, torch.tensor([[0, 0, 257, 256.0]]))  # 257 is no bfloat16
    assert float(loss) == pytest.approx(1 / 257, rel=1e-4)


@pytest.mark.parametrize(
    ("box", "target", "expected"),
    [
        ([1, 2, 5, 4], [1, 2, 5, 4], 0),
        ([0, 0, 2, 2], [1, 0, 3, 2], 1 - 2 / 6),  # the union is the enclosing box
        ([0, 0, 1, 1], [2, 0, 3, 1], 1 + 1 / 3),  # disjoint; 1 of the 3 enclosed is empty
        ([0, 0, 4, 4], [1, 1, 3, 3], 1 - 4 / 16),  # one inside the other
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 - 1 / 7 + 2 / 9),
        ([0, 0, 1, 1], [99, 99, 100, 100], 1 + 9998 / 10000),
        ([0, 0, 1e-3, 1e-3], [0, 0, 2e-3, 1e-3], 0.5),  # relative coordinates, about a pixel
    ],
)
def test_giou_loss_by_hand(box, target, expected):
    loss = giou_loss(double(box), double(target))
    assert loss.shape == (1,) and float(loss) == pytest.approx(expected, abs=1e-12)


def test_giou_loss_equals_counts_of_cells_on_a_grid():
    torch.manual_seed(1)
    first, last = torch.randint(0, 12, (2, 50, 2, 2))  # of 50 pairs of boxes: x, y of two corners
    boxes = torch.cat([torch.minimum(first, last), torch.maximum(first, last) + 1], dim=-1)
    expected = []
    for one, other in boxes.tolist():
        cells = [
            {(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])} for b in (one, other)
        ]
        corner = [min(one[0], other[0]), min(one[1], other[1])]
        hull = (max(one[2], other[2]) - corner[0]) * (max(one[3], other[3]) - corner[1])
        overlap, union = len(cells[0] & cells[1]), len(cells[0] | cells[1])
        expected.append(1 - overlap / union + (hull - union) / hull)
    loss = giou_loss(boxes[:, 0].double(), boxes[:, 1].double())
    assert loss.tolist() == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) > 40


def test_giou_loss_moves_a_box_towards_a_disjoint_target():
    box = double([0, 0, 2, 2]).requires_grad_()
    giou_loss(box, double([6, 0, 8, 2])).sum().backward()
    assert box.grad[0, 2] < 0 < box.grad[0, 0]  # GIoU first enlarges it, on both sides


def test_giou_loss_of_boxes_without_an_area_is_finite():
    boxes = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3]], requires_grad=True)
    loss = giou_loss(boxes, torch.tensor([[3.0, 3, 3, 3], [0, 0, 6, 6]]))
    loss.sum().backward()
    assert loss.tolist() == [1, 1] and boxes.grad.isfinite().all()
