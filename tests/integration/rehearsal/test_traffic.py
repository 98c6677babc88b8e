"""Kernels and bytes that are counted on the fake GPU, against counts by hand."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

from smt.models import zoo
from smt.rehearsal.traffic import Traffic, traffic
from tests.helpers import ROOT
from tests.helpers.params import project_at

PAPER = project_at("paper").models
BATCH, INPUTS, OUTPUTS = 5, 7, 3


def forward_backward(network, x):
    network(x).backward(torch.ones(len(x), OUTPUTS, device=x.device))


def infer(network, x):
    with torch.inference_mode():
        network(x)


def test_a_linear_layer_moves_what_its_shapes_say():
    layer = nn.Linear(INPUTS, OUTPUTS)
    x, weight, bias, y = BATCH * INPUTS, OUTPUTS * INPUTS, OUTPUTS, BATCH * OUTPUTS
    counted = traffic(layer, infer, torch.randn(BATCH, INPUTS))
    assert counted == Traffic(kernels=1, casts=0, bytes=4 * (x + weight + bias + y))
    counted = traffic(layer, forward_backward, torch.randn(BATCH, INPUTS))
    product = y + x + weight  # the weight's gradient: no other, as the input has none
    total = (x + weight + bias + y) + y + product + (y + bias)  # y: ones are written
    assert counted == Traffic(kernels=4, casts=0, bytes=4 * total)


def test_casts_of_autocast_are_counted():
    def in_half(network, x):
        with torch.autocast("cuda", torch.float16):
            infer(network, x)

    x, weight, y = BATCH * INPUTS, OUTPUTS * INPUTS, BATCH * OUTPUTS
    layer = nn.Linear(INPUTS, OUTPUTS, bias=False)
    counted = traffic(layer, in_half, torch.randn(BATCH, INPUTS))
    product = 2 * (x + weight + y)
    assert counted == Traffic(kernels=3, casts=2, bytes=(4 + 2) * (x + weight) + product)


@pytest.mark.parametrize(
    ("call", "bytes_", "casts"),
    [
        (lambda _, x: x + 1, 4 + 4, 0),
        (lambda _, x: x.add_(1), 4 + 4, 0),
        (lambda _, x: x.zero_(), 4, 0),
        (lambda _, x: torch.add(x, 1, out=torch.empty_like(x)), 4 + 4, 0),
        (lambda _, x: x.half(), 4 + 2, 1),
        (lambda _, x: torch.empty_like(x, dtype=torch.half).copy_(x), 4 + 2, 1),
        (lambda _, x: torch.empty_like(x).copy_(x), 4 + 4, 0),
        (lambda _, x: x.view(-1).t(), 0, 0),
        (lambda _, x: x[:1].expand(BATCH) + x, 4 / BATCH + 4 + 4, 0),
    ],
    ids=["new", "in place", "overwritten", "out", "cast", "cast copy", "copy", "view", "expanded"],
)
def test_each_way_of_writing_is_counted_once(call, bytes_, casts):
    counted = traffic(nn.Identity(), call, torch.randn(BATCH))
    assert (counted.bytes, counted.casts) == (bytes_ * BATCH, casts)


def test_multi_tensor_casts_are_one_kernel():
    def call(_, x):
        torch._foreach_copy_([torch.empty_like(x, dtype=torch.half) for _ in range(3)], [x] * 3)

    counted = traffic(nn.Identity(), call, torch.randn(BATCH))
    assert counted == Traffic(kernels=1, casts=1, bytes=3 * (4 + 2) * BATCH)


def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("model", ROOT / "benchmarks" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# A block casts its parameters together, forward and backward, and the sum before each norm. Outside
# of blocks autocast's own casts are left: of stem, embeddings and head.
@pytest.mark.parametrize(
    "name",
    [
        "smt_tiny",
        *(pytest.param(f"smt_{it}", marks=pytest.mark.slow) for it in ("small", "base", "large")),
    ],
)
def test_a_block_takes_few_casts(monkeypatch, name):
    model, images = PAPER[name], torch.randn(2, 3, 64, 64)
    script = benchmark(monkeypatch)
    labels = torch.zeros(2, dtype=torch.int64)
    network = zoo.build(model, num_classes=10, drop_path_rate=0.1)
    counted = traffic(network, script.train_in_half, images, labels)
    blocks = sum(model.depths)
    assert 0 < counted.casts <= 10 * blocks + 80
    counted = traffic(network.eval(), script.infer_in_half, images, labels)
    assert 0 < counted.casts <= 5 * blocks + 40


@pytest.mark.slow
def test_a_model_of_the_paper_moves_less_than_the_plain_baseline(monkeypatch, capsys):
    script = benchmark(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["model.py", "--only", "traffic", "--traffic-batch", "16"])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    shares = [line.split() for line in lines if "of the bytes" in line]
    assert [share[1] for share in shares] == ["inference", "training"]
    for share in shares:
        assert float(share[2]) < 0.75 and float(share[7]) < 0.7, share
