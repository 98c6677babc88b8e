"""Attention's kernels are under the stricter rule for as long as their gradient takes.

On a CPU there is another kernel than on GPUs, whose node bears the same family name.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smt.models import attention
from smt.models.blocks import MSA


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Take the CPU's kernel for a GPU's, in the mode that training asks for."""
    monkeypatch.setattr(attention, "_needs_care", lambda attended: True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


def kernels(attended):
    return [node.name() for node in attention._kernels(attended.grad_fn)]


def test_the_kernel_is_found_behind_each_kind_of_layer():
    x = torch.randn(2, 6, 32, requires_grad=True)
    heads = x.unflatten(-1, (4, 8)).transpose(1, 2)
    alone = F.scaled_dot_product_attention(heads, heads, heads)
    assert len(kernels(alone)) == 1
    layer = nn.MultiheadAttention(32, 4, batch_first=True)
    assert len(kernels(layer(x, x, x, need_weights=False)[0])) == 1
    mask = torch.zeros(6, 6, dtype=torch.bool)
    assert len(kernels(layer(x, x, x, attn_mask=mask, need_weights=False)[0])) == 1


def test_what_is_no_attention_has_no_kernel():
    assert kernels(torch.randn(3, requires_grad=True).exp().sum()) == []
    assert kernels(torch.randn(3)) == []


def test_the_kernel_s_gradient_alone_may_not_be_without_a_deterministic_form(on_a_gpu):
    seen = {}

    def look(name):
        def hook(*gradients):
            seen[name] = torch.is_deterministic_algorithms_warn_only_enabled()

        return hook

    x = torch.randn(2, 4, 4, 32, requires_grad=True)
    msa = MSA(32, 4)
    output = msa(x)
    (kernel,) = attention._kernels(output.grad_fn)
    kernel.register_prehook(look("in the kernel"))
    output.register_hook(look("before"))
    x.register_hook(look("after"))
    output.sum().backward()
    assert seen == {"before": True, "in the kernel": False, "after": True}
    assert torch.are_deterministic_algorithms_enabled()


def test_without_a_wish_for_determinism_nothing_is_changed():
    assert not attention._needs_care(torch.randn(2))
