"""Ours against SMT written from the paper's equations, and MACs against torch's counter."""

import importlib.util

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from smt.models import profile, released, zoo
from tests.helpers import ROOT
from tests.helpers.params import project_at

PAPER = project_at("paper").smt_models
DEMO = project_at("demo").smt_models
SAME_ARCHITECTURE = [  # what the plain baseline covers: SAA, heads that divide the channels
    "smt_tiny", "smt_large", "smt_tiny_heads_2", "smt_tiny_stage3_half", "smt_tiny_stage3_sam",
    "smt_tiny_stage3_msa",
]  # fmt: skip


def plain(model):
    path = ROOT / "benchmarks" / "plain.py"
    spec = importlib.util.spec_from_file_location("plain", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PlainSMT(model, 10)


# 32 x 32 ends in one pixel and 33 x 47 in one by two: there kernels are cut and images padded.
@pytest.mark.parametrize(
    "size", [(32, 32), (33, 47), pytest.param((100, 64), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", SAME_ARCHITECTURE)
def test_outputs_gradients_and_statistics_are_those_of_the_equations(name, size):
    torch.manual_seed(0)
    ours, expected = zoo.build(DEMO[name], num_classes=10).double(), plain(DEMO[name]).double()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    expected.load_state_dict(released.to_released(ours.state_dict()))
    images = torch.randn(4, 3, *size, dtype=torch.float64)
    weights = torch.randn(4, 10, dtype=torch.float64)
    for network in (ours, expected):
        (network(images) * weights).sum().backward()
    gradients = released.to_released({name: p.grad for name, p in ours.named_parameters()})
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12, msg=name)
    state = released.to_released(ours.state_dict())
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(state[name], buffer, rtol=1e-9, atol=1e-12, msg=name)
    with torch.inference_mode():
        logits = ours.eval()(images)
        torch.testing.assert_close(logits, expected.eval()(images), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("resolution", [pytest.param(224, marks=pytest.mark.slow), 200])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name == "smt_large"))
        for name in SAME_ARCHITECTURE
    ],
)
def test_macs_are_half_of_the_operations_that_torch_counts(name, resolution):
    with torch.device("meta"):
        network = plain(PAPER[name]).eval()
        images = torch.empty(1, 3, resolution, resolution)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(images)
    counts = profile.count(PAPER[name], resolution, num_classes=10)
    assert 2 * counts.attention == counter.get_total_flops()


def test_synchronised_batch_norm_can_take_the_place_of_batch_norm():
    torch.manual_seed(0)
    model = zoo.build(DEMO["smt_tiny"], num_classes=10).eval()
    images = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        expected = model(images)
        converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        torch.testing.assert_close(converted(images), expected)
