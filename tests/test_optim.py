"""Learning rate, decay groups and clipping of a recipe."""

import math

import pytest
import torch
from torch import nn

from smt.engine import optim
from smt.layout import bundled_params
from smt.params import load_project

PAPER = load_project(bundled_params(), "paper")
RECIPE = PAPER.recipes["imagenet1k"]
STEPS = 1251  # 1,281,167 // 1024


def test_learning_rate_is_scaled_to_the_global_batch():
    # 1,024 images a step are twice the 512 at which the rates are stated.
    assert optim.learning_rate(RECIPE, 0, STEPS) == pytest.approx(2e-7)
    assert optim.learning_rate(RECIPE, 5 * STEPS, STEPS) == pytest.approx(2e-3, rel=1e-3)
    assert optim.learning_rate(RECIPE, 300 * STEPS, STEPS) == pytest.approx(2e-6)


def test_warm_up_is_a_line_and_the_rest_a_cosine():
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


def test_weight_decay_spares_biases_and_norms():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    groups = optim.adamw(model, RECIPE.optimizer).param_groups
    decayed = {tuple(p.shape) for group in groups if group["weight_decay"] for p in group["params"]}
    spared = {
        tuple(p.shape) for group in groups if not group["weight_decay"] for p in group["params"]
    }
    assert decayed == {(4, 3, 3, 3), (2, 4)}
    assert spared == {(4,), (2,)}


def test_clipping_returns_the_norm_before_it():
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), 10.0)
    assert float(optim.clip([weight], 5.0)) == pytest.approx(20)
    assert float(weight.grad.norm()) == pytest.approx(5, rel=1e-5)
    assert math.isclose(float(optim.clip([weight], None)), 5, rel_tol=1e-5)
    assert float(weight.grad.norm()) == pytest.approx(5, rel=1e-5)
