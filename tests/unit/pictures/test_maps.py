"""Modulators and heads of MHMC, against SMT written from the paper's equations."""

import pytest
import torch

from smt.errors import UserError
from smt.models import released, zoo
from smt.pictures import maps
from tests.helpers.params import project_at
from tests.unit.models.test_plain import plain

DEMO = project_at("demo").models


def networks(name="smt_tiny"):
    """Return a network with random weights and statistics, and the plain one with the same."""
    torch.manual_seed(0)
    network, equations = zoo.build(DEMO[name], num_classes=10), plain(DEMO[name])
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network(torch.randn(4, 3, 64, 64))  # BatchNorms have statistics of their own from here on
    equations.load_state_dict(released.to_released(network.state_dict()))
    return network.double().eval(), equations.double().eval()


def outputs(modules, network, images):
    """Return what each module computes while a network runs."""
    seen = {}
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return seen


def last_sam_of_equations(equations, stage):
    """Return the last block of a stage of the plain network that has convolutions of MHMC."""
    blocks = getattr(equations, f"block{stage}")
    return [block.attn for block in blocks if hasattr(block.attn, "local_conv_1")][-1]


def test_modulators_are_those_of_the_equations():
    network, equations = networks()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    sams = {stage: last_sam_of_equations(equations, stage) for stage in (1, 2, 3)}
    expected = outputs({s: sam.proj1 for s, sam in sams.items()}, equations, images)
    found = maps.modulators(network, images)
    assert found.keys() == {1, 2, 3}  # stage 4 is attention alone
    for stage, modulator in found.items():
        assert modulator.shape == (2, 64 // 2 ** (stage + 1), 96 // 2 ** (stage + 1))
        torch.testing.assert_close(modulator, expected[stage].abs().mean(1))


@pytest.mark.parametrize("stage", [1, 3])
def test_heads_are_those_of_the_equations(stage):
    network, equations = networks()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    sam = last_sam_of_equations(equations, stage)
    convolutions = {head: getattr(sam, f"local_conv_{head + 1}") for head in range(4)}
    expected = outputs(convolutions, equations, images)
    found = maps.head_outputs(network, images, stage)
    assert len(found) == 4
    for head, output in enumerate(found):
        torch.testing.assert_close(output, expected[head].abs().mean(1))


def test_without_aggregation_the_modulator_is_the_output_of_mhmc():
    torch.manual_seed(0)
    network = zoo.build(DEMO["smt_tiny_aggregation_none"], num_classes=10).eval()
    images = torch.randn(1, 3, 64, 64)
    heads = maps.head_outputs(network, images, 1)
    torch.testing.assert_close(
        maps.modulators(network, images)[1], torch.stack(heads).mean(0), rtol=1e-5, atol=1e-6
    )


def test_hooks_are_gone_afterwards():
    network, _ = networks()
    maps.modulators(network, torch.randn(1, 3, 64, 64, dtype=torch.float64))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_stage_of_attention_alone_is_refused_with_those_that_are_valid():
    network = zoo.build(DEMO["smt_tiny_stage3_msa"], num_classes=10)
    with pytest.raises(UserError, match=r"stage 3: SMT-T, .* that have it: 1, 2$"):
        maps.require_stage(network, 3)
