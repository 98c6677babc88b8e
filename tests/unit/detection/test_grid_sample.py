"""The deterministic gradient of grid_sample for GPUs, against that of torch's kernel."""

import pytest
import torch
import torch.nn.functional as F

from smt.detection import grid_sample


@pytest.mark.parametrize("size", [(7, 9), (1, 1), (1, 6)])
def test_the_gradient_equals_that_of_the_kernel(size):
    torch.manual_seed(0)
    maps = torch.randn(3, 4, *size, dtype=torch.float64, requires_grad=True)
    grid = torch.rand(3, 11, 5, 2, dtype=torch.float64) * 3 - 1.5  # some outside the maps
    grid[0, 0, 0] = torch.tensor([1e6, -1e6])
    grid.requires_grad_()
    kernel = F.grid_sample(maps, grid, align_corners=False)
    ours = grid_sample._GridSample.apply(maps, grid)
    assert torch.equal(ours, kernel)
    weights = torch.randn_like(kernel)
    kernel_gradients = torch.autograd.grad(kernel, (maps, grid), weights)
    our_gradients = torch.autograd.grad(ours, (maps, grid), weights)
    assert kernel_gradients[0].abs().max() > 0
    for expected, actual in zip(kernel_gradients, our_gradients, strict=True):
        assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_deterministic_mode_is_the_same_after_the_backward_pass():
    maps = torch.randn(1, 2, 4, 4, requires_grad=True)
    grid = torch.zeros(1, 3, 1, 2, requires_grad=True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    grid_sample._GridSample.apply(maps, grid).sum().backward()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert maps.grad is not None and grid.grad is not None


def test_only_inputs_that_require_a_gradient_get_one():
    maps = torch.randn(1, 2, 4, 4, requires_grad=True)
    grid_sample._GridSample.apply(maps, torch.zeros(1, 3, 1, 2)).sum().backward()
    assert maps.grad is not None
