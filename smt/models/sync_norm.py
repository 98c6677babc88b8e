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
        output, mean, variance, count = _Normalised.apply(x, self.weight, self.bias, self.eps)
        self._follow(mean, variance, count)
        normalised: Tensor = output.to(input.dtype)
        return normalised

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


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,), biased variance (C,) and number of a channel's values on all processes.

    Each process sends the sum, and the squares about its own mean, of which those about the common
    mean follow (Chan et al., 1979). Squares about zero would cancel where a mean is far from it.
    """
    count = x[:, 0].numel()
    sums = x.sum((0, 2, 3))
    squares = (x - (sums / max(count, 1))[:, None, None]).square().sum((0, 2, 3))
    own = torch.cat([sums, squares, x.new_full((1,), count)])
    gathered = own.new_empty(distributed.get_world_size(), len(own))
    distributed.all_gather(list(gathered.unbind()), own)
    sums, squares, counts = gathered.split([len(sums), len(squares), 1], dim=1)  # of each process
    count = counts.sum()
    mean = sums.sum(0) / count
    apart = sums / counts.clamp(min=1) - mean  # (processes, C)
    return mean, (squares + counts * apart.square()).sum(0) / count, count


class _Normalised(torch.autograd.Function):
    """Images (B, C, H, W) normalised over all processes, scaled and shifted, and the statistics.

    There is one exchange between processes forward and one backward.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _statistics(x)
        inverse = torch.rsqrt(variance + epsilon)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        centred = x - mean[:, None, None]
        scale = (inverse * weight)[:, None, None]
        return torch.addcmul(bias[:, None, None], centred, scale), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        gradient = gradients[0]
        normalised = (x - mean[:, None, None]) * inverse[:, None, None]
        of_bias = gradient.sum((0, 2, 3))
        of_weight = (gradient * normalised).sum((0, 2, 3))
        total = torch.cat([of_bias, of_weight])
        distributed.all_reduce(total)
        of_mean, of_scale = (total / count)[:, None, None].chunk(2)
        scale = (inverse * weight)[:, None, None]
        return scale * (gradient - of_mean - normalised * of_scale), of_weight, of_bias, None
