"""The processes of a training: who this one is, and how they agree."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes files."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set on any rank."""
        if self.world_size == 1:
            return flags
        tensor = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in tensor.tolist())

    def sum(self, *values: float) -> tuple[float, ...]:
        """Return the sum of each value over all ranks, added in float64."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tuple(tensor.tolist())

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()


def start(threads: int) -> Ranks:
    """Join the processes that `torchrun` or SLURM started, or be the only one.

    NCCL where there are GPUs, one a process by LOCAL_RANK; gloo otherwise. `threads` is the number
    of CPU threads of each process: it is set here since it changes the order of sums.
    """
    torch.set_num_threads(threads)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        # What cuBLAS asks for before it promises the same bits twice.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    else:
        device = torch.device("cpu")
    torch.use_deterministic_algorithms(True, warn_only=True)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(rank, world_size, device)


def stop() -> None:
    """Leave the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


class BatchNormAverage:
    """Keeps the running statistics of every BatchNorm the same on all ranks: their mean.

    Each rank sees its own share of a global batch. Averaged after every step, in one reduction, the
    statistics that are evaluated, saved and resumed from never depend on which rank wrote them.
    """

    def __init__(self, model: torch.nn.Module, ranks: Ranks) -> None:
        self._world_size = ranks.world_size
        self._buffers = [
            buffer
            for module in model.modules()
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]

    @torch.no_grad()
    def __call__(self) -> None:
        if self._world_size == 1 or not self._buffers:
            return
        flat = torch.cat([buffer.flatten() for buffer in self._buffers])
        dist.all_reduce(flat)
        flat /= self._world_size
        parts = flat.split([buffer.numel() for buffer in self._buffers])
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
