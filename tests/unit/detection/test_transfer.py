"""Numbers copied from the host to a device, and indices and counts copied back."""

import pytest
import torch

from smt.detection.transfer import numbers_like, true_counts, true_indices


def test_indices_are_where_masks_are_true():
    torch.manual_seed(0)
    masks = [torch.rand(count) < density for count in (0, 1, 70) for density in (0.0, 0.4, 1.0)]
    indices = true_indices(masks)
    assert true_counts(masks) == [len(index) for index in indices]
    for mask, actual in zip(masks, indices, strict=True):
        assert torch.equal(actual, mask.nonzero()[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_have_the_dtype_of_the_given_tensor(dtype):
    numbers = numbers_like(torch.ones(3, dtype=dtype), [0.1, 800])
    assert torch.equal(numbers, torch.tensor([0.1, 800], dtype=dtype))
