"""BatchNorm over the batches of all processes, on any device.

torch's own works on GPUs only; a rehearsal on CPUs has to train the same mathematics.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm of images (B, C, H, W) whose statistics are of every process's batch.

    With one process, or in evaluation mode, it is `nn.BatchNorm2d`, but that a channel's only value
    is its own mean: torch refuses to train on one. Processes may have batches of other sizes; each
    must take part in every step.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise ValueError(f"expected images (B, C, H, W), got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training or not _several_processes():
            if self.training and input[:, 0].numel() == 1:
                return super().forward(input.expand(2, -1, -1, -1))[:1]
            return super().forward(input)
        assert self.running_mean is not None
        x = input.to(self.running_mean.dtype)  # not in half precision
        count = x.new_tensor([x[:, 0].numel()])
        sums = _SumOverProcesses.apply(torch.cat([x.sum((0, 2, 3)), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        centred = x - mean[:, None, None]
        variance = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach(), count.detach())
        scale = torch.rsqrt(variance + self.eps) * self.weight
        output = torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None])
        return output.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics towards those of a batch of `count` values a channel."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)


def _several_processes() -> bool:
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over processes; each one's gradient is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total
