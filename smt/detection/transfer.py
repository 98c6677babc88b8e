"""Between host and device: how to give a GPU numbers without a wait, and ask it for some in one.

A copy of memory that is not pinned, and a result whose size depends on data, make the host wait
until the GPU has done all that it was given; then it has nothing to do until the host has caught
up.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on `device`; the host does not wait for the copy."""
    if device.type == "cuda":
        host = host.pin_memory()  # torch keeps it until the GPU has read it
    return host.to(device, non_blocking=True)


def numbers_like(tensor: Tensor, values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    """Return numbers of the host in the type and on the device of `tensor`, without a wait."""
    return to_device(torch.tensor(values, dtype=tensor.dtype), tensor.device)


def true_counts(masks: Sequence[Tensor]) -> list[int]:
    """Return how many elements of each mask, bool of any shape, are true: one wait for all."""
    counts: list[int] = torch.stack([mask.sum() for mask in masks]).tolist()
    return counts


def true_indices(masks: Sequence[Tensor]) -> list[Tensor]:
    """Return where each mask (N_i,) bool is true, (M_i,) int64 ascending: one wait for all."""
    return [
        mask.nonzero_static(size=count)[:, 0]
        for mask, count in zip(masks, true_counts(masks), strict=True)
    ]
