"""What the training loop asks of a task."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from smt.config.recipes import Recipe


@dataclass(frozen=True)
class Batch:
    """What one forward and backward pass of one process works on."""

    loss_inputs: tuple[Any, ...]
    """Given to `Task.loss` as they are."""
    images: int
    key: tuple[int | str, ...]
    """Names the batch among all of the run: the draws inside the model are keyed by it."""


class EvaluationInterrupted(Exception):
    """An evaluation was broken off, on every rank, since one was asked to stop."""


def never() -> bool:
    """Answer that nobody asks for a stop."""
    return False


class Task(Protocol):
    """Model, data, loss and metric of one kind of training."""

    headline: str
    """The metric, higher is better, that tells which checkpoint is the best."""

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of an epoch."""
        ...

    @property
    def accumulation(self) -> int:
        """Batches of this process in one global step."""
        ...

    @property
    def model(self) -> nn.Module:
        """What is trained, on this rank's device."""
        ...

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        ...

    def batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        """Yield this process's batches of an epoch, `accumulation` a step, from `start_step` on."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean loss of a batch; `model` is the task's own, wrapped for several ranks."""
        ...

    def evaluate(
        self, interrupted: Callable[[], bool] = never, *, final: bool = True
    ) -> dict[str, float]:
        """Return the metrics on the validation split, the same on every rank; empty without one.

        `interrupted` is asked between two batches whether to go on. What costs much more than the
        rest is measured only where it is `final`: at the end of a training, and on its own.

        Raises:
            EvaluationInterrupted: it said yes, on this rank or on another.
        """
        ...
