"""RoIAlign's gradient by two matrices a box, which GPUs need, against that of torchvision's kernel.

Where torch runs on a CPU the kernel is deterministic and is used; here its place is taken.
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
    """Take the gradient that a GPU has."""
    monkeypatch.setattr(roi_align, "_needs_care", lambda features: True)


def boxes_of(counts, side, dtype=torch.float64):
    """Return boxes (K, 5) image by image, some beyond the image or without an area."""
    torch.manual_seed(0)
    boxes = []
    for image, count in enumerate(counts):
        first = torch.rand(count, 2, dtype=dtype) * side * 1.2 - side * 0.1
        sides = torch.rand(count, 2, dtype=dtype) ** 3 * side * 1.5
        sides[: min(count, 1)] = 0
        sides[1:2] = torch.tensor([side * 1.3, 2.0], dtype=dtype)  # long and flat
        index = torch.full((count, 1), float(image), dtype=dtype)
        boxes.append(torch.cat([index, first, first + sides], dim=1))
    return torch.cat(boxes)


def gradients(boxes, counts, resolution, ratio):
    """Return the gradients of torchvision's kernel and of ours."""
    features = torch.randn(len(counts), 3, 20, 27, dtype=torch.float64, requires_grad=True)
    kernel = ops.roi_align(features, boxes, resolution, 0.25, ratio, aligned=True)
    ours = roi_align.roi_align(
        features, boxes, resolution, counts=counts, scale=0.25, sampling_ratio=ratio
    )
    assert torch.equal(ours, kernel)
    weights = torch.randn_like(kernel)
    return [torch.autograd.grad(each, features, weights)[0] for each in (kernel, ours)]


@pytest.mark.parametrize("ratio", [roi_align.ADAPTIVE, 0, 1, 2])
@pytest.mark.parametrize("resolution", [1, 7, 14])
def test_the_gradient_is_that_of_the_kernel(on_a_gpu, ratio, resolution):
    kernel, ours = gradients(boxes_of((12, 0, 9), 80.0), (12, 0, 9), resolution, ratio)
    assert kernel.abs().max() > 0
    assert torch.allclose(ours, kernel, rtol=1e-12, atol=1e-12)


def test_so_it_is_where_a_piece_has_one_box(on_a_gpu, monkeypatch):
    monkeypatch.setattr(roi_align, "_ELEMENTS", 1)
    kernel, ours = gradients(boxes_of((5, 4), 80.0), (5, 4), 7, roi_align.ADAPTIVE)
    assert torch.allclose(ours, kernel, rtol=1e-12, atol=1e-12)


def test_without_boxes_or_samples_the_gradient_is_zero(on_a_gpu):
    for boxes in (torch.empty(0, 5, dtype=torch.float64), boxes_of((1, 0), 80.0)):
        counts = (len(boxes), 0)
        kernel, ours = gradients(boxes, counts, 7, roi_align.ADAPTIVE)
        assert not kernel.any() and not ours.any()


def test_a_pyramid_has_the_kernel_s_gradients(monkeypatch):
    torch.manual_seed(0)
    levels = [torch.randn(3, 2, 256 // stride, 256 // stride) for stride in STRIDES]
    boxes = [boxes_of((count,), 250.0, torch.float32)[:, 1:] for count in (20, 0, 15)]
    of_levels = []
    for cared_for in (False, True):
        monkeypatch.setattr(roi_align, "_needs_care", lambda features, value=cared_for: value)
        leaves = [level.clone().requires_grad_() for level in levels]
        pooled = pool(leaves, STRIDES, by_image(boxes), 7)
        of_levels.append(torch.autograd.grad(pooled.square().sum(), leaves))
    assert sum(bool(each.any()) for each in of_levels[0]) > 1
    for kernel, ours in zip(*of_levels, strict=True):
        assert torch.allclose(ours, kernel, rtol=1e-4, atol=1e-4)


def test_deterministic_algorithms_do_not_send_features_to_torchvision_s_own(monkeypatch):
    """Its Python function takes terabytes on a GPU where they are asked for."""

    def refused(*arguments, **more):
        raise AssertionError("torchvision's own function was called")

    for module in (ops, pooling, mask_module):
        if getattr(module, "roi_align", None) is not roi_align.roi_align:
            monkeypatch.setattr(module, "roi_align", refused, raising=False)
    levels = [torch.randn(1, 2, 64 // stride, 64 // stride) for stride in STRIDES]
    assert pool(levels, STRIDES, by_image([torch.tensor([[1.0, 2, 30, 40]])]), 7).isfinite().all()
    masks = torch.ones(2, 8, 9, dtype=torch.bool)
    boxes = torch.tensor([[0.0, 0, 9, 8], [1, 1, 4, 6]])
    assert mask_targets(masks, torch.tensor([1, 0]), boxes, 14).all()


def test_the_host_asks_for_counts_and_samples_once(monkeypatch):
    monkeypatch.setattr(roi_align, "_needs_care", lambda features: True)
    lists, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: lists.append(x) or tolist(x))
    monkeypatch.setattr(torch.Tensor, "__int__", None)
    levels = [torch.randn(2, 2, 256 // stride, 256 // stride, requires_grad=True)
              for stride in STRIDES]  # fmt: skip
    boxes = [boxes_of((count,), 250.0, torch.float32)[:, 1:] for count in (9, 4)]
    pool(levels, STRIDES, by_image(boxes), 7).sum().backward()
    (asked,) = lists
    # The long and flat box has a side of 325 pixels, on the level of stride 4.
    assert sum(asked[:-1]) == 13 and asked[-1] == -(-325 // (4 * 7))
