"""The backward pass of attention's kernels is deterministic or an error, not a warning.

The CPU has another kernel than GPUs; the names of both begin alike.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smt.models import attention
from smt.models.blocks import MSA


@pytest.fixture
def as_on_gpu(monkeypatch):
    """Treat the CPU's kernel as a GPU's, in the warn-only mode of training."""
    monkeypatch.setattr(attention, "_needs_care", lambda attended: True)
    torch.use_deterministic_algorithms(True, warn_only=True)


def kernels(attended):
    return [node.name() for node in attention._kernels(attended.grad_fn)]


def test_the_kernel_is_found_behind_every_kind_of_layer():
    x = torch.randn(2, 6, 32, requires_grad=True)
    heads = x.unflatten(-1, (4, 8)).transpose(1, 2)
    attended = F.scaled_dot_product_attention(heads, heads, heads)
    assert len(kernels(attended)) == 1
    layer = nn.MultiheadAttention(32, 4, batch_first=True)
    assert len(kernels(layer(x, x, x, need_weights=False)[0])) == 1
    mask = torch.zeros(6, 6, dtype=torch.bool)
    assert len(kernels(layer(x, x, x, attn_mask=mask, need_weights=False)[0])) == 1


def test_other_operations_have_no_attention_kernel():
    assert kernels(torch.randn(3, requires_grad=True).exp().sum()) == []
    assert kernels(torch.randn(3)) == []


def test_warn_only_is_off_during_the_kernels_backward_pass_alone(as_on_gpu):
    modes = {}

    def record_mode(name):
        def hook(*gradients):
            modes[name] = torch.is_deterministic_algorithms_warn_only_enabled()

        return hook

    x = torch.randn(2, 4, 4, 32, requires_grad=True)
    msa = MSA(32, 4)
    output = msa(x)
    (kernel,) = attention._kernels(output.grad_fn)
    kernel.register_prehook(record_mode("in the kernel"))
    output.register_hook(record_mode("before"))
    x.register_hook(record_mode("after"))
    output.sum().backward()
    assert modes == {"before": True, "in the kernel": False, "after": True}
    assert torch.are_deterministic_algorithms_enabled()


def test_without_deterministic_algorithms_nothing_is_changed():
    assert not attention._needs_care(torch.randn(2))
