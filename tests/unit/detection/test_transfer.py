"""Numbers of the host on a device, and what the host asks a device for."""

import pytest
import torch

from smt.detection.transfer import numbers_like, true_counts, true_indices


def test_indices_are_where_masks_are_true():
    torch.manual_seed(0)
    masks = [torch.rand(count) < share for count in (0, 1, 70) for share in (0.0, 0.4, 1.0)]
    indices = true_indices(masks)
    assert true_counts(masks) == [len(each) for each in indices]
    for mask, found in zip(masks, indices, strict=True):
        assert torch.equal(found, mask.nonzero()[:, 0])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_numbers_have_the_type_of_what_they_meet(kind):
    numbers = numbers_like(torch.ones(3, dtype=kind), [0.1, 800])
    assert torch.equal(numbers, torch.tensor([0.1, 800], dtype=kind))
