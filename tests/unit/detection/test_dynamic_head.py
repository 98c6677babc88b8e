"""The dynamic head of Sparse R-CNN against its definition, one proposal at a time."""

import itertools
import math

import pytest
import torch
from torch import nn

from smt.detection.dynamic_head import DynamicHead
from smt.models import profile
from tests.helpers.dense_scenes import head


def linear(x, layer):
    return x @ layer.weight.double().T + (0 if layer.bias is None else layer.bias.double())


def norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
    return centred / deviation * layer.weight.double() + layer.bias.double()


def self_attention(x, layer, heads):
    """Return multi-head attention (P, C) among proposals (P, C) of one image."""
    width = x.shape[1] // heads
    queries, keys, values = (
        x @ layer.in_proj_weight.double().T + layer.in_proj_bias.double()
    ).chunk(3, dim=1)
    outputs = []
    for part in (
        slice(head_index * width, (head_index + 1) * width) for head_index in range(heads)
    ):
        weights = (queries[:, part] @ keys[:, part].T / math.sqrt(width)).softmax(1)
        outputs.append(weights @ values[:, part])
    return linear(torch.cat(outputs, 1), layer.out_proj)


def interact(x, region, layer, hidden):
    """Return the dynamic interaction of a proposal (C,) with its region (C, R, R)."""
    channels = len(x)
    generated = linear(x, layer.generate)
    first = generated[: channels * hidden].view(channels, hidden)
    second = generated[channels * hidden :].view(hidden, channels)
    pixels = []
    for row, column in itertools.product(range(region.shape[1]), range(region.shape[2])):
        pixel = norm(region[:, row, column] @ first, layer.norm_in).relu()
        pixels.append(norm(pixel @ second, layer.norm_out).relu())
    return norm(linear(torch.cat(pixels), layer.output), layer.norm).relu()


def tower(x, layers):
    for dense, layer_norm in zip(layers[::3], layers[1::3], strict=True):
        x = norm(linear(x, dense), layer_norm).relu()
    return x


def test_a_stage_equals_attention_interaction_and_two_towers():
    torch.manual_seed(0)
    spec = head("sparse_rcnn", channels=16, heads=4, feedforward=24, dynamic_channels=8)
    stage = DynamicHead(spec, classes=5)
    with torch.no_grad():  # norms and biases other than the initial ones
        for parameter in stage.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    proposals, regions = torch.randn(2, 6, 16), torch.randn(12, 16, 7, 7)
    outputs = stage(proposals, regions)
    for image in range(2):
        x = proposals[image].double()
        x = norm(x + self_attention(x, stage.attention, 4), stage.attention_norm)
        interactions = [
            interact(proposal, regions[6 * image + row].double(), stage.interaction, 8)
            for row, proposal in enumerate(x)
        ]
        x = norm(x + torch.stack(interactions), stage.interaction_norm)
        inner, _, outer = stage.feedforward
        x = norm(x + linear(linear(x, inner).relu(), outer), stage.feedforward_norm)
        expected = (
            linear(tower(x, stage.class_tower), stage.classes),
            linear(tower(x, stage.box_tower), stage.offsets),
            x,
        )
        for actual, reference in zip(outputs, expected, strict=True):
            assert torch.allclose(actual[image].double(), reference, atol=1e-4)


def test_towers_have_one_layer_for_classes_and_three_for_boxes():
    stage = DynamicHead(head("sparse_rcnn", channels=16, dynamic_channels=8), classes=5)
    layers = [sum(isinstance(layer, nn.Linear) for layer in tower) for tower in
              (stage.class_tower, stage.box_tower)]  # fmt: skip
    assert layers == [1, 3]


def test_initial_weights_follow_the_reference():
    torch.manual_seed(0)
    stage = DynamicHead(head("sparse_rcnn"), classes=80)
    assert stage.classes.bias.detach().sigmoid().tolist() == pytest.approx([0.01] * 80)
    assert stage.offsets.bias.tolist() == [0] * 4
    for matrix in (parameter.detach() for parameter in stage.parameters() if parameter.dim() == 2):
        bound = math.sqrt(6 / sum(matrix.shape))  # Xavier's
        assert 0.95 * bound < float(matrix.abs().max()) < 1.001 * bound
        assert float(matrix.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_parameter_count_by_hand():
    with torch.device("meta"):
        stage = DynamicHead(head("sparse_rcnn"), classes=80)
    expected = (256 * 32768 + 32768) + (49 * 256 * 256 + 256)  # generated weights, output
    expected += 2 * (64 + 256 + 256)  # norms of the interaction
    expected += (4 * 256 * 256 + 4 * 256) + (2 * 256 * 2048 + 2048 + 256)
    expected += 3 * 2 * 256  # norms after attention, interaction and feedforward
    expected += 4 * (256 * 256 + 2 * 256) + (256 * 80 + 80) + (256 * 4 + 4)  # towers
    assert sum(parameter.numel() for parameter in stage.parameters()) == expected == 13_235_412


def test_macs_of_a_stage_by_hand():
    with torch.device("meta"):
        stage = DynamicHead(head("sparse_rcnn"), classes=80)
        proposals, regions = torch.empty(1, 300, 256), torch.empty(300, 256, 7, 7)
    counts = profile.count_forward(stage, proposals, regions)
    generated, region = 256 * 2 * 256 * 64, 49 * 256 * 256
    towers = 4 * 256 * 256 + 256 * 80 + 256 * 4
    assert counts.linear_macs == 300 * (generated + region + 2 * 256 * 2048 + towers)
    interaction = 49 * 2 * 256 * 64
    attention = 4 * 256 * 256 + 2 * 300 * 256  # projections; QK and AV
    assert counts.attention_macs == 300 * (interaction + attention)
    assert counts.norm_elements == 300 * (49 * (64 + 256) + 256 * (1 + 3 + 4))
    assert counts.relu_elements == 300 * (49 * (64 + 256) + 256 + 2048 + 4 * 256)
