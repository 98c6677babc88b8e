"""The deterministic gradient of RoIAlign for GPUs, two matrices per box, against torchvision's.

On a CPU torchvision's kernel is deterministic and is used; these tests replace it.
"""

import pytest
import torch
from torchvision import ops

from smt.detection import mask_loss as mask_module
from smt.detection import pooling, roi_align
from smt.detection.mask_loss import mask_targets
from smt.detection.pooling import by_image, pool

STRIDES = (4, 8, 16, 32)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Use the gradient of GPUs."""
    monkeypatch.setattr(roi_align, "_needs_care", lambda features: True)


def random_boxes(counts, side, dtype=torch.float64):
    """Return boxes (K, 5) image by image, some across its edges or without an area."""
    torch.manual_seed(0)
    boxes = []
    for image, count in enumerate(counts):
        first = torch.rand(count, 2, dtype=dtype) * side * 1.2 - side * 0.1
        sides = torch.rand(count, 2, dtype=dtype) ** 3 * side * 1.5
        sides[: min(count, 1)] = 0
        sides[1:2] = torch.tensor([side * 1.3, 2.0], dtype=dtype)  # wide and flat
        index = torch.full((count, 1), float(image), dtype=dtype)
        boxes.append(torch.cat([index, first, first + sides], dim=1))
    return torch.cat(boxes)


def gradients(boxes, counts, resolution, ratio):
    """Return the gradients of torchvision's kernel and of smt's."""
    features = torch.randn(len(counts), 3, 20, 27, dtype=torch.float64, requires_grad=True)
    kernel = ops.roi_align(features, boxes, resolution, 0.25, ratio, aligned=True)
    ours = roi_align.roi_align(
        features, boxes, resolution, counts=counts, scale=0.25, sampling_ratio=ratio
    )
    assert torch.equal(ours, kernel)
    weights = torch.randn_like(kernel)
    return [torch.autograd.grad(output, features, weights)[0] for output in (kernel, ours)]


@pytest.mark.parametrize("ratio", [roi_align.ADAPTIVE, 0, 1, 2])
@pytest.mark.parametrize("resolution", [1, 7, 14])
def test_the_gradient_equals_that_of_the_kernel(on_a_gpu, ratio, resolution):
    kernel, ours = gradients(random_boxes((12, 0, 9), 80.0), (12, 0, 9), resolution, ratio)
    assert kernel.abs().max() > 0
    assert torch.allclose(ours, kernel, rtol=1e-12, atol=1e-12)


def test_the_gradient_in_chunks_of_one_box_equals_that_of_the_kernel(on_a_gpu, monkeypatch):
    monkeypatch.setattr(roi_align, "_ELEMENTS", 1)
    kernel, ours = gradients(random_boxes((5, 4), 80.0), (5, 4), 7, roi_align.ADAPTIVE)
    assert torch.allclose(ours, kernel, rtol=1e-12, atol=1e-12)


def test_without_boxes_or_samples_the_gradient_is_zero(on_a_gpu):
    for boxes in (torch.empty(0, 5, dtype=torch.float64), random_boxes((1, 0), 80.0)):
        counts = (len(boxes), 0)
        kernel, ours = gradients(boxes, counts, 7, roi_align.ADAPTIVE)
        assert not kernel.any() and not ours.any()


def test_gradients_of_pyramid_levels_equal_those_of_the_kernel(monkeypatch):
    torch.manual_seed(0)
    levels = [torch.randn(3, 2, 256 // stride, 256 // stride) for stride in STRIDES]
    boxes = [random_boxes((count,), 250.0, torch.float32)[:, 1:] for count in (20, 0, 15)]
    gradients_of_levels = []
    for deterministic in (False, True):
        monkeypatch.setattr(roi_align, "_needs_care", lambda features, value=deterministic: value)
        leaves = [level.clone().requires_grad_() for level in levels]
        pooled = pool(leaves, STRIDES, by_image(boxes), 7)
        gradients_of_levels.append(torch.autograd.grad(pooled.square().sum(), leaves))
    assert sum(bool(gradient.any()) for gradient in gradients_of_levels[0]) > 1
    for kernel, ours in zip(*gradients_of_levels, strict=True):
        assert torch.allclose(ours, kernel, rtol=1e-4, atol=1e-4)


def test_torchvisions_python_roi_align_is_not_called(monkeypatch):
    """In deterministic mode torchvision's Python version takes terabytes on a GPU."""

    def fail(*arguments, **options):
        raise AssertionError("torchvision's own function was called")

    for module in (ops, pooling, mask_module):
        if getattr(module, "roi_align", None) is not roi_align.roi_align:
            monkeypatch.setattr(module, "roi_align", fail, raising=False)
    levels = [torch.randn(1, 2, 64 // stride, 64 // stride) for stride in STRIDES]
    assert pool(levels, STRIDES, by_image([torch.tensor([[1.0, 2, 30, 40]])]), 7).isfinite().all()
    masks = torch.ones(2, 8, 9, dtype=torch.bool)
    boxes = torch.tensor([[0.0, 0, 9, 8], [1, 1, 4, 6]])
    assert mask_targets(masks, torch.tensor([1, 0]), boxes, 14).all()


def test_counts_and_samples_are_copied_to_the_host_once(monkeypatch):
    monkeypatch.setattr(roi_align, "_needs_care", lambda features: True)
    copies, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: copies.append(x) or tolist(x))
    monkeypatch.setattr(torch.Tensor, "__int__", None)
    levels = [torch.randn(2, 2, 256 // stride, 256 // stride, requires_grad=True)
              for stride in STRIDES]  # fmt: skip
    boxes = [random_boxes((count,), 250.0, torch.float32)[:, 1:] for count in (9, 4)]
    pool(levels, STRIDES, by_image(boxes), 7).sum().backward()
    (copied,) = copies
    # The wide and flat box has a side of 325 pixels, on the level of stride 4.
    assert sum(copied[:-1]) == 13 and copied[-1] == -(-325 // (4 * 7))
