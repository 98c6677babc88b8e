"""The interface between the training loop and a task."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from smt.config.recipes import Recipe


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass of one process works on."""

    loss_inputs: tuple[Any, ...]
    """Given to `Task.loss` as they are."""
    images: int
    key: tuple[int | str, ...]
    """Names the micro-batch among all of the run: it seeds drop path and dropout."""


class EvaluationInterrupted(Exception):
    """An evaluation was interrupted on every rank, since one of them was asked to stop."""


def never() -> bool:
    """Return that no stop is requested."""
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
    def accumulation_steps(self) -> int:
        """Micro-batches of this process in one global step."""
        ...

    @property
    def model(self) -> nn.Module:
        """What is trained, on this rank's device."""
        ...

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        ...

    def micro_batches(self, epoch: int, start_step: int) -> Iterator[MicroBatch]:
        """Yield this process's micro-batches of an epoch from global step `start_step` on."""
        ...

    def loss(self, model: nn.Module, batch: MicroBatch) -> torch.Tensor:
        """Return the mean loss of a micro-batch; `model` is its model, maybe in DDP."""
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
