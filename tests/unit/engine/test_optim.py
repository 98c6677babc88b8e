"""Learning rate, decay groups and clipping of a recipe."""

import math

import pytest
import torch
from torch import nn

from smt.engine import optim
from tests.helpers.params import project_at

PAPER = project_at("paper")
RECIPE = PAPER.recipes["imagenet1k"]
STEPS = 1251  # 1,281,167 // 1024


def test_learning_rate_is_scaled_to_the_global_batch():
    # 1,024 images a step are twice the 512 at which the rates are stated.
    assert optim.learning_rate(RECIPE, 0, STEPS) == pytest.approx(2e-7)
    assert optim.learning_rate(RECIPE, 5 * STEPS, STEPS) == pytest.approx(2e-3, rel=1e-3)
    assert optim.learning_rate(RECIPE, 300 * STEPS, STEPS) == pytest.approx(2e-6)


def test_the_rate_rises_linearly_and_then_follows_a_cosine():
    low, high = 2e-7, 2e-3
    half_way = optim.learning_rate(RECIPE, 5 * STEPS // 2, STEPS)
    assert half_way == pytest.approx((low + high) / 2, rel=1e-3)
    middle = optim.learning_rate(RECIPE, 150 * STEPS, STEPS)
    assert middle == pytest.approx((2e-3 + 2e-6) / 2)


def test_fine_tuning_at_384_states_its_rates_for_512():
    recipe = PAPER.recipes["imagenet22k_to_1k_384"]
    assert optim.learning_rate(recipe, 0, 100) == pytest.approx(2e-8)
    assert optim.learning_rate(recipe, 30 * 100, 100) == pytest.approx(2e-7)


def test_pretraining_on_22k_scales_by_eight():
    recipe = PAPER.recipes["imagenet22k"]
    assert optim.learning_rate(recipe, 0, 100) == pytest.approx(8 * 1.25e-7)


def test_biases_and_norms_have_no_weight_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    groups = optim.adamw(model, RECIPE.optimizer).param_groups
    with_decay = {
        tuple(p.shape) for group in groups if group["weight_decay"] for p in group["params"]
    }
    without_decay = {
        tuple(p.shape) for group in groups if not group["weight_decay"] for p in group["params"]
    }
    assert with_decay == {(4, 3, 3, 3), (2, 4)}
    assert without_decay == {(4,), (2,)}


def test_clipping_returns_the_norm_before_clipping():
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), 10.0)
    assert float(optim.clip([weight], 5.0)) == pytest.approx(20)
    assert float(weight.grad.norm()) == pytest.approx(5, rel=1e-5)
    assert math.isclose(float(optim.clip([weight], None)), 5, rel_tol=1e-5)
    assert float(weight.grad.norm()) == pytest.approx(5, rel=1e-5)


# --- detection and segmentation -------------------------------------------------------------------


def test_a_rate_in_steps_drops_at_its_milestones_after_a_linear_warm_up():
    recipe, epoch = PAPER.recipes["mask_rcnn_1x"], 7329  # 117,266 // 16
    assert optim.learning_rate(recipe, 0, epoch) == pytest.approx(2e-4 * 1e-3)
    assert optim.learning_rate(recipe, 250, epoch) == pytest.approx(2e-4 * (1e-3 + 0.999 / 2))
    for step, rate in ((500, 2e-4), (8 * epoch - 1, 2e-4), (8 * epoch, 2e-5), (11 * epoch, 2e-6)):
        assert optim.learning_rate(recipe, step, epoch) == pytest.approx(rate)


def test_a_poly_rate_falls_to_zero_and_includes_its_warm_up():
    recipe = PAPER.recipes["upernet_160k"]
    assert recipe.schedule.epochs == 10
    assert optim.learning_rate(recipe, 0, 16000) == pytest.approx(6e-5 * 1e-6)
    decayed = 6e-5 * (1 - 750 / 160000)
    assert optim.learning_rate(recipe, 750, 16000) == pytest.approx(decayed * (1e-6 + 0.999999 / 2))
    assert optim.learning_rate(recipe, 80000, 16000) == pytest.approx(3e-5)
    assert optim.learning_rate(recipe, 160000, 16000) == 0


class Downstream(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        self.head = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.LayerNorm(3))


def groups_of(recipe):
    """Return weight decay and learning rate of each parameter, at a rate of 1."""
    model = Downstream()
    optimizer = optim.adamw(model, recipe.optimizer)
    optim.set_learning_rate(optimizer, 1.0)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {
        name: (group_of[id(p)]["weight_decay"], group_of[id(p)]["lr"])
        for name, p in model.named_parameters()
    }


def test_everything_but_layer_norms_decays_in_mask_rcnn():
    groups = groups_of(PAPER.recipes["mask_rcnn_1x"])
    fixed = {name for name, (decay, _) in groups.items() if decay == 0}
    assert fixed == {"backbone.1.weight", "backbone.1.bias", "head.2.weight", "head.2.bias"}
    assert {decay for decay, _ in groups.values()} == {0, 0.05}
    assert {rate for _, rate in groups.values()} == {1.0}


def test_the_backbone_of_dino_has_a_tenth_of_the_rate_and_decays():
    groups = groups_of(PAPER.recipes["dino_1x"])
    assert {decay for decay, _ in groups.values()} == {1e-4}
    for name, (_, rate) in groups.items():
        assert rate == pytest.approx(0.1 if name.startswith("backbone.") else 1.0), name
