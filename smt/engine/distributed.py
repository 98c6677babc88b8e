"""Process group of a training: this rank, collectives, and what the loss of a peer means."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from smt.config.recipes import Recipe
from smt.engine import device as device_module
from smt.engine import launch, rendezvous
from smt.errors import EXIT_RESUME, TrainingError, UserError, first_line

T = TypeVar("T")


class PeerFailed(Exception):
    """Another process of this training failed and logged why; this one has nothing to add."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this training failed")
        self.exit_code = exit_code


class PeerLost(UserError):
    """Another process of this training is gone without a message: killed, or its node is down."""

    exit_code = EXIT_RESUME


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

    def sum(self, *values: float) -> tuple[float, ...]:
        """Return the sum of each value over all ranks, added in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def min(self, *values: float) -> tuple[float, ...]:
        """Return the smallest of each value over all ranks."""
        return self._reduce(values, dist.ReduceOp.MIN)

    def _reduce(self, values: tuple[float, ...], operation: Any) -> tuple[float, ...]:
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)  # on the CPU: through gloo
        dist.all_reduce(tensor, op=operation)
        return tuple(tensor.tolist())

    def all_equal(self, value: float) -> bool:
        """Return whether every rank has the same value."""
        low, high = self.min(value, -value)
        return low == -high

    def gather(self, value: T) -> list[T] | None:
        """Return the value of each rank on rank 0, in their order, and None on the others."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, gathered)
        return gathered

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def barrier(self) -> None:
        """Wait for every rank."""
        self.sum(0.0)

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Run the body on every rank; where it fails on one, raise on all of them.

        The body must not wait for other ranks. Its own UserError is raised on the lowest rank that
        has one.

        Raises:
            PeerFailed: the body failed on another rank, which says why.
        """
        user_error: UserError | None = None
        try:
            yield
        except UserError as error:
            user_error = error
        # Without this exchange the others would wait in the next collective for the rank that
        # failed.
        (lowest,) = self.min(self.rank if user_error else self.world_size)
        (code,) = self.min(-user_error.exit_code if user_error and lowest == self.rank else 0)
        if user_error is not None and lowest == self.rank:
            raise user_error
        if lowest < self.world_size:
            raise PeerFailed(int(-code))


def start(threads: int, recipe: Recipe | None = None) -> Ranks:
    """Join the processes that `torchrun` or SLURM started, or be the only one.

    One GPU a process by LOCAL_RANK, with NCCL for its tensors; gloo for those of the CPU.
    `threads` is the number of CPU threads of each process: it is set here since it changes the
    order of sums. `recipe` is what is trained or evaluated: it may give up the same bits, and half
    precision is for GPUs.

    Raises:
        PeerLost: the others did not connect.
        UserError: there are GPUs, and this torch cannot use them.
    """
    torch.set_num_threads(threads)
    process = launch.process_rank()
    rank, world_size = process.rank, process.world_size
    half = recipe is not None and recipe.half_precision
    device = device_module.choose(process.local_rank, half_precision=half)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    device_module.allow_tf32(recipe is not None and recipe.precision == "tf32")
    if recipe is None or recipe.deterministic:
        device_module.make_deterministic(device, threads)
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    if world_size > 1:
        try:
            # Control messages go through gloo on GPUs too: where a process is lost it raises an
            # exception, where NCCL's watchdog ends the process.
            rendezvous.connect("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        except (dist.DistError, RuntimeError) as error:
            refuse_misconfiguration(error)
            if not is_loss_of_peer(error):
                raise
            raise PeerLost(
                f"rank {rank} of {world_size}: the other processes did not connect "
                f"({cause_of_loss(error)}); run the same command again"
            ) from None
    return Ranks(rank, world_size, device)


def stop(*, wait: bool = True) -> None:
    """Leave the process group, if there is one; after every rank has come here, unless one is lost.

    With `wait` false, right away.
    """
    if dist.is_initialized():
        if wait:
            rendezvous.leave()
        dist.destroy_process_group()


_PEER_LOSS_SIGNS = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")


_MISCONFIGURED = re.compile(
    r"Duplicate GPU detected|No space left on device|ncclInvalid(Usage|Argument)"
    r"|ncclUnhandledCudaError|no kernel image"
)
"""Errors of NCCL that another attempt would meet again."""


def misconfiguration(error: Exception) -> str | None:
    """Return NCCL's message about a set-up in which it cannot work, or None for other errors."""
    message = str(error)
    if "NCCL" not in message or _MISCONFIGURED.search(message) is None:
        return None
    detail = re.search(r"Last error:\s*(.+)", message)
    return detail[1].strip() if detail else first_line(error)


def refuse_misconfiguration(error: Exception) -> None:
    """Raise a UserError that says so, where NCCL cannot work in this set-up."""
    problem = misconfiguration(error)
    if problem is not None:
        raise TrainingError(
            f"the processes cannot exchange sums: NCCL: {problem}; give each process a GPU of its "
            "own and room in /dev/shm; NCCL_DEBUG=INFO shows more"
        ) from None


def is_loss_of_peer(error: Exception) -> bool:
    """Return whether an exchange between ranks failed, rather than this rank's own work."""
    if misconfiguration(error) is not None:
        return False
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _PEER_LOSS_SIGNS)


_CAUSE = re.compile(r"Connection (closed|reset) by peer|[Tt]imed out[^.]*|Broken pipe")


def cause_of_loss(error: Exception) -> str:
    """Return the few words that say why an exchange failed."""
    match = _CAUSE.search(str(error))
    return match[0] if match else first_line(error)


def data_parallel(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Return the model with gradients that are summed over ranks; itself where there is one."""
    if ranks.world_size == 1:
        return model
    # The strides of a depthwise kernel (n, 1, 3, 3) are ambiguous; torch warns of the one it took.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(
        model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
    )


class BatchNormBuffers:
    """Running mean, variance and step count of every BatchNorm of a model."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [
            module
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.running_mean is not None
        ]
        self._statistics = [
            buffer
            for module in self._modules
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]

    def copy(self) -> list[torch.Tensor]:
        """Return the values as they are now."""
        return [buffer.clone() for module in self._modules for buffer in module.buffers()]

    @torch.no_grad()
    def restore(self, values: list[torch.Tensor]) -> None:
        """Put back what `copy` returned."""
        buffers = [buffer for module in self._modules for buffer in module.buffers()]
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)

    @torch.no_grad()
    def average(self, world_size: int) -> None:
        """Make the running statistics the same on all ranks: their mean.

        Each rank sees its own share of a global batch. With the average after every step, in one
        all-reduce, evaluation and checkpoints do not depend on which rank does them.
        """
        if world_size == 1 or not self._statistics:
            return
        flat = torch.cat([buffer.flatten() for buffer in self._statistics])
        dist.all_reduce(flat)
        flat /= world_size
        parts = flat.split([buffer.numel() for buffer in self._statistics])
        for buffer, part in zip(self._statistics, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
