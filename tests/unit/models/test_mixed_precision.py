"""Blocks under autocast: as exact as autocast's own way, and the plain way without it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smt.models import mixed_precision
from smt.models.blocks import block
from smt.models.smt import SMT
from tests.helpers.params import project_at

MODELS = project_at("demo").smt_models
HALVES = [torch.bfloat16, torch.float16]


def network(name="smt_tiny", drop=0.0):
    torch.manual_seed(0)
    model = SMT(MODELS[name], num_classes=10, drop_path_rate=drop)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.1)  # no branch is scaled down to nothing
    return model


def step(model, half=None):
    """Return logits and gradients, each as one vector in float64."""
    torch.manual_seed(1)
    images = torch.randn(8, 3, 64, 64)
    dtype = next(model.parameters()).dtype
    with torch.autocast("cpu", half, enabled=half is not None):
        logits = model(images.to(dtype))
    F.cross_entropy(logits.to(dtype), torch.arange(8)).backward()
    gradients = [parameter.grad.double().flatten() for parameter in model.parameters()]
    return logits.detach().double().flatten(), torch.cat(gradients)


def errors(half, name):
    """Return how far logits and gradients are from those in float64, relative."""
    exact = step(network(name).double())
    return [
        float((value - right).norm() / right.norm())
        for value, right in zip(step(network(name), half), exact, strict=True)
    ]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", ["smt_tiny", "smt_large"])
def test_the_error_is_that_of_autocast(monkeypatch, half, name):
    ours = errors(half, name)
    monkeypatch.setattr(mixed_precision, "half_of", lambda x: None)
    plain = errors(half, name)
    assert min(plain) > torch.finfo(half).eps / 10, "half precision was not in force"
    assert all(error < 1.5 * base for error, base in zip(ours, plain, strict=True)), (ours, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mixer", ["sam", "msa"])
def test_without_autocast_a_block_has_the_bits_of_its_formula(dtype, mixer):
    torch.manual_seed(0)
    layer = block(MODELS["smt_large"], 2, mixer, drop=0.0).to(dtype)
    x = torch.randn(2, 6, 5, MODELS["smt_large"].widths[2], dtype=dtype)
    between = torch.addcmul(x, layer.mixer(layer.norm1(x)), layer.scale1)
    expected = torch.addcmul(between, layer.mlp(layer.norm2(between)), layer.scale2)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("half", HALVES)
def test_dropped_branches_leave_the_sum_as_it_is_and_get_no_gradient(half):
    x = torch.randn(2, 3, 3, 4, requires_grad=True)
    branch = torch.randn(2, 3, 3, 4, dtype=half, requires_grad=True)
    scale = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
    with torch.autocast("cpu", half):
        total = mixed_precision.scaled_sum(x, branch, scale)
    assert total.dtype is torch.float32
    assert torch.equal(total, torch.addcmul(x, branch.float(), scale))
    total.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert branch.grad.dtype is half
    assert torch.equal(branch.grad, scale.to(half).expand_as(branch))


def test_parameters_are_the_same_single_precision_tensors_afterwards():
    model = network()
    before = dict(model.named_parameters())
    step(model, torch.bfloat16)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert all(parameter.grad.dtype is torch.float32 for parameter in after.values())


def test_parameters_are_put_back_where_a_block_fails():
    layer = block(MODELS["smt_tiny"], 0, "sam", drop=0.0)
    before = dict(layer.named_parameters())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError):
        layer(torch.randn(1, 4, 4, 7))
    assert all(value is before[name] for name, value in layer.named_parameters())


@pytest.mark.parametrize("half", HALVES)
def test_inference_gives_the_bits_of_a_forward_pass_with_gradients(half):
    model, images = network().eval(), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", half):
        expected = model(images).detach()
        with torch.inference_mode():
            assert torch.equal(model(images), expected)
