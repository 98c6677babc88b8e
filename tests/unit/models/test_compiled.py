"""Blocks through torch.compile; that a compiled training resumes exactly is an integration test."""

import pytest
import torch

from smt.errors import UserError
from smt.models.blocks import Block
from smt.models.compiled import compile_blocks, explained_compilation
from smt.models.smt import SMT
from tests.helpers.params import project_at

MODEL = project_at("smoke").models["smt_tiny"]


def test_every_block_is_compiled_and_its_weights_keep_their_names():
    network = SMT(MODEL, num_classes=3)
    names = list(network.state_dict())
    compile_blocks(network)
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    assert len(blocks) == sum(MODEL.depths)
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert list(network.state_dict()) == names


def test_a_block_that_breaks_the_graph_is_one_line_on_the_recipe(monkeypatch):
    """Torch would run a part of it uncompiled without a warning."""
    forward = Block.forward

    def breaks(self, x):
        torch._dynamo.graph_break()
        return forward(self, x)

    monkeypatch.setattr(Block, "forward", breaks)
    network = SMT(MODEL, num_classes=3)
    compile_blocks(network)
    with pytest.raises(UserError) as raised, explained_compilation("imagenet1k", "recipes.yaml"):
        network(torch.randn(1, 3, 64, 64))
    message = str(raised.value)
    assert message.startswith("recipe imagenet1k: compile: true: torch.compile fails: ")
    assert "compile: false in params/recipes.yaml" in message and "\n" not in message
