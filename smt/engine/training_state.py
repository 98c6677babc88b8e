"""The state of a training between two steps: all that a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from smt.engine.checkpoint import Checkpoint
from smt.engine.guard import LossStatistics
from smt.errors import TrainingError
from smt.runs.journal import Position


@dataclass
class TrainingState:
    """Model, optimizer, loss scaler, position, and the sums of the record being gathered.

    There is no state of random generators in it: they are seeded anew for every step and sample.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    """Global steps done."""
    epochs: int = 0
    """Epochs done and closed: evaluated if it was their turn, and in the journal."""
    best: float | None = None
    """Highest value so far of the task's headline metric."""
    best_step: int | None = None
    seconds: float = 0.0
    """Wall time of all attempts up to the last save."""
    journal: Position = field(default_factory=Position)
    loss_sum: float = 0.0
    """Sum over the steps since the last record of the mean loss of each, over all ranks."""
    loss_steps: int = 0
    loss_statistics: LossStatistics = field(default_factory=LossStatistics)
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Experiment, seed, scale, fingerprint: a checkpoint names its run wherever it is moved."""
    _host_copy: "HostCopy" = field(default_factory=lambda: HostCopy())

    @property
    def bytes(self) -> int:
        """Size of the tensors of a checkpoint once the optimizer has its moments."""
        tensors = (*self.model.state_dict().values(), *self.model.parameters(),
                *self.model.parameters())  # fmt: skip
        return sum(value.numel() * value.element_size() for value in tensors)

    def snapshot(self) -> Checkpoint:
        """Return the state as it is now. The next snapshot overwrites the tensors of this one."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        return Checkpoint(
            self.step,
            self.epochs,
            self._host_copy(tensors),
            {
                "identity": dict(self.identity),
                "best": self.best,
                "best_step": self.best_step,
                "seconds": self.seconds,
                "scaler": self.scaler.state_dict(),
                "journal": asdict(self.journal),
                "loss_sum": self.loss_sum,
                "loss_steps": self.loss_steps,
                "trend": self.loss_statistics.facts,
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the state of a checkpoint.

        Raises:
            RuntimeError: its tensors are not those of this model.
            TrainingError: it is of another run.
        """
        facts: Mapping[str, Any] = checkpoint.facts
        if facts["identity"] != self.identity:
            raise TrainingError(
                f"the checkpoint of step {checkpoint.step} is of another run: {facts['identity']}, "
                f"not {dict(self.identity)}; move it away"
            )
        model, slots = _split(checkpoint.tensors)
        self.model.load_state_dict(model)
        self._restore_optimizer(slots)
        self.scaler.load_state_dict(facts["scaler"])
        self.step, self.epochs = checkpoint.step, checkpoint.epochs
        self.best, self.best_step = facts["best"], facts["best_step"]
        self.seconds = facts["seconds"]
        self.journal = Position(**facts["journal"])
        self.loss_sum, self.loss_steps = facts["loss_sum"], facts["loss_steps"]
        self.loss_statistics = LossStatistics.of(facts["trend"])

    def _restore_optimizer(self, slots: dict[int, dict[str, torch.Tensor]]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, values in slots.items():
            parameter = parameters[index]
            self.optimizer.state[parameter] = {
                # A moment lies in memory as its parameter does; the step count is a scalar.
                name: torch.empty_like(parameter).copy_(value)
                if value.shape == parameter.shape
                else value.to(parameter.device)
                for name, value in values.items()
            }


class HostCopy:
    """Copies tensors to memory of the host that it keeps, so that a copy takes no new memory.

    From a GPU the memory is pinned, which the copy is several times as fast into.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return contiguous copies on the CPU, which the next call overwrites."""
        copies = {name: self._fill(name, value.detach()) for name, value in tensors.items()}
        if any(value.is_cuda for value in tensors.values()):
            torch.cuda.synchronize()
        return copies

    def _fill(self, name: str, value: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[name] = buffer
        return buffer.copy_(value, non_blocking=True)


def _split(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[int, dict[str, torch.Tensor]]]:
    model: dict[str, torch.Tensor] = {}
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part == "model":
            model[rest] = value
        else:
            index, _, slot = rest.partition(".")
            slots.setdefault(int(index), {})[slot] = value
    return model, slots
