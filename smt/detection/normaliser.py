"""What a loss is divided by when several processes train together."""

import torch
from torch import Tensor


def mean_over_ranks(count: Tensor) -> Tensor:
    """Return the mean of a scalar over all processes, without a gradient; itself with only one."""
    count = count.detach().float()
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return count
    total = count.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
