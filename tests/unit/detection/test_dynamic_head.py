"""A stage of Sparse R-CNN against its definition, written out for one proposal at a time."""

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


def attended(x, layer, heads):
    """Return multi-head attention (P, C) among proposals (P, C) of one image."""
    width = x.shape[1] // heads
    queries, keys, values = (
        x @ layer.in_proj_weight.double().T + layer.in_proj_bias.double()
    ).chunk(3, dim=1)
    outputs = []
    for part in (slice(each * width, (each + 1) * width) for each in range(heads)):
        weights = (queries[:, part] @ keys[:, part].T / math.sqrt(width)).softmax(1)
        outputs.append(weights @ values[:, part])
    return linear(torch.cat(outputs, 1), layer.out_proj)


def interacted(x, region, layer, hidden):
    """Return what one proposal (C,) makes of its region (C, R, R)."""
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


def test_a_stage_is_attention_interaction_and_two_towers():
    torch.manual_seed(0)
    spec = head("sparse_rcnn", channels=16, heads=4, feedforward=24, dynamic_channels=8)
    stage = DynamicHead(spec, classes=5)
    with torch.no_grad():  # norms and biases that are not what they start as
        for parameter in stage.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    proposals, regions = torch.randn(2, 6, 16), torch.randn(12, 16, 7, 7)
    found = stage(proposals, regions)
    for image in range(2):
        x = proposals[image].double()
        x = norm(x + attended(x, stage.attention, 4), stage.attention_norm)
        seen = [
            interacted(each, regions[6 * image + row].double(), stage.interaction, 8)
            for row, each in enumerate(x)
        ]
        x = norm(x + torch.stack(seen), stage.interaction_norm)
        inner, _, outer = stage.feedforward
        x = norm(x + linear(linear(x, inner).relu(), outer), stage.feedforward_norm)
        expected = (
            linear(tower(x, stage.class_tower), stage.classes),
            linear(tower(x, stage.box_tower), stage.offsets),
            x,
        )
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.allclose(ours[image].double(), theirs, atol=1e-4)


def test_a_stage_has_one_layer_for_classes_and_three_for_boxes():
    stage = DynamicHead(head("sparse_rcnn", channels=16, dynamic_channels=8), classes=5)
    layers = [sum(isinstance(each, nn.Linear) for each in tower) for tower in
              (stage.class_tower, stage.box_tower)]  # fmt: skip
    assert layers == [1, 3]


def test_it_starts_as_the_reference_does():
    torch.manual_seed(0)
    stage = DynamicHead(head("sparse_rcnn"), classes=80)
    assert stage.classes.bias.detach().sigmoid().tolist() == pytest.approx([0.01] * 80)
    assert stage.offsets.bias.tolist() == [0] * 4
    for matrix in (each.detach() for each in stage.parameters() if each.dim() == 2):
        bound = math.sqrt(6 / sum(matrix.shape))  # Xavier's
        assert 0.95 * bound < float(matrix.abs().max()) < 1.001 * bound
        assert float(matrix.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_parameters_to_the_last():
    with torch.device("meta"):
        stage = DynamicHead(head("sparse_rcnn"), classes=80)
    expected = (256 * 32768 + 32768) + (49 * 256 * 256 + 256)  # generated weights, the region
    expected += 2 * (64 + 256 + 256)  # norms of the interaction
    expected += (4 * 256 * 256 + 4 * 256) + (2 * 256 * 2048 + 2048 + 256)
    expected += 3 * 2 * 256  # norms after attention, interaction and feedforward
    expected += 4 * (256 * 256 + 2 * 256) + (256 * 80 + 80) + (256 * 4 + 4)  # towers
    assert sum(each.numel() for each in stage.parameters()) == expected == 13_235_412


def test_macs_of_a_stage_by_hand():
    with torch.device("meta"):
        stage = DynamicHead(head("sparse_rcnn"), classes=80)
        proposals, regions = torch.empty(1, 300, 256), torch.empty(300, 256, 7, 7)
    counts = profile.count_forward(stage, proposals, regions)
    generated, region = 256 * 2 * 256 * 64, 49 * 256 * 256
    towers = 4 * 256 * 256 + 256 * 80 + 256 * 4
    assert counts.linear_macs == 300 * (generated + region + 2 * 256 * 2048 + towers)
    convolved = 49 * 2 * 256 * 64
    attention = 4 * 256 * 256 + 2 * 300 * 256  # projections; QK and AV
    assert counts.attention_macs == 300 * (convolved + attention)
    assert counts.norm_elements == 300 * (49 * (64 + 256) + 256 * (1 + 3 + 4))
    assert counts.relu_elements == 300 * (49 * (64 + 256) + 256 + 2048 + 4 * 256)
