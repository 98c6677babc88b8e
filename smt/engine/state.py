"""What a training is made of between two steps: all that a checkpoint keeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from smt.engine.checkpoint import Checkpoint
from smt.tracking.journal import Position


@dataclass
class State:
    """Model, optimizer, loss scaler, position, and the sums of the record being gathered.

    There is no random state in it: every draw is keyed by seed, step and sample.
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
    journal: Position = Position()
    loss_sum: float = 0.0
    """Sum over the steps since the last record of the mean loss of each."""
    loss_steps: int = 0

    def snapshot(self) -> Checkpoint:
        """Return the state as it is now; its tensors are copies on the CPU."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        return Checkpoint(
            self.step,
            {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()},
            {
                "epochs": self.epochs,
                "best": self.best,
                "best_step": self.best_step,
                "seconds": self.seconds,
                "scaler": self.scaler.state_dict(),
                "journal": {"bytes": self.journal.bytes, "lines": self.journal.lines},
                "loss_sum": self.loss_sum,
                "loss_steps": self.loss_steps,
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the state of a checkpoint.

        Raises:
            RuntimeError: its tensors are not those of this model.
        """
        model, slots = _split(checkpoint.tensors)
        self.model.load_state_dict(model)
        self._restore_optimizer(slots)
        facts: Mapping[str, Any] = checkpoint.facts
        self.scaler.load_state_dict(facts["scaler"])
        self.step, self.epochs = checkpoint.step, facts["epochs"]
        self.best, self.best_step = facts["best"], facts["best_step"]
        self.seconds = facts["seconds"]
        self.journal = Position(**facts["journal"])
        self.loss_sum, self.loss_steps = facts["loss_sum"], facts["loss_steps"]

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
