"""The training loop, one for all tasks."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from smt.data.rng import reseed
from smt.engine import checkpoint, optim
from smt.engine.distributed import BatchNormAverage, Ranks
from smt.engine.preempt import StopRequest
from smt.engine.progress import Progress
from smt.engine.protocol import Batch, Task
from smt.engine.state import State
from smt.errors import TrainingError
from smt.tracking.journal import Journal

log = logging.getLogger(__name__)


class Stopped(Exception):
    """The training was asked to stop; its state is saved and it can go on."""


class NotFinite(TrainingError):
    """The loss is NaN or infinite."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class Settings:
    """What does not change the result of a training."""

    log_every: int
    """Steps between two records of the journal."""
    checkpoint_seconds: float
    """Longest time between two checkpoints; there is one at the end of every epoch too."""


class Trainer:
    """Trains a task from its newest checkpoint, or from the start, to its last epoch."""

    def __init__(
        self, task: Task, work_dir: Path, *, seed: int, ranks: Ranks, settings: Settings,
        stop: StopRequest,
    ) -> None:  # fmt: skip
        self.task, self.work_dir, self.seed = task, work_dir, seed
        self.ranks, self.settings, self.stop = ranks, settings, stop
        self.epochs = task.recipe.schedule.epochs
        self.writer = checkpoint.Writer(self.checkpoints)
        self.state = State(
            task.model,
            optim.adamw(task.model, task.recipe.optimizer),
            optim.loss_scaler(task.recipe, ranks.device),
        )
        self.saved_at = self.counted_at = time.monotonic()
        found = checkpoint.newest(self.checkpoints)
        if found is not None:
            self.state.restore(found)
        self.journal = Journal(work_dir, self.state.journal) if ranks.is_first else None
        self.model = _wrap(task.model, ranks)
        self.average_batch_norm = BatchNormAverage(task.model, ranks)
        self.parameters = [p for p in task.model.parameters() if p.requires_grad]

    @property
    def checkpoints(self) -> Path:
        """Folder of this run's checkpoints."""
        return self.work_dir / "checkpoints"

    @property
    def total_steps(self) -> int:
        """Global steps of the whole run."""
        return self.epochs * self.task.steps_per_epoch

    def train(self, progress: Progress) -> dict[str, float]:
        """Train to the end and return the metrics of the last epoch.

        Raises:
            Stopped: a signal asked for it; the state is saved.
            NotFinite: the loss is NaN or infinite; the message names step and learning rate.
            OSError: a checkpoint or the journal could not be written.
        """
        metrics: dict[str, float] = {}
        try:
            while self.state.epochs < self.epochs:
                self._finish_steps(progress)
                metrics = self._close_epoch(progress)
            self.writer.wait()
        finally:
            self.writer.close()
        return metrics or self.task.evaluate()

    def _finish_steps(self, progress: Progress) -> None:
        """Take the steps that are left of the epoch."""
        start = self.state.step - self.state.epochs * self.task.steps_per_epoch
        batches = self.task.batches(self.state.epochs, start)
        for _ in range(start, self.task.steps_per_epoch):
            self._attend()
            self._step(batches, progress)
        self._attend()

    def _step(self, batches: Iterator[Batch], progress: Progress) -> None:
        state, task = self.state, self.task
        rate = optim.learning_rate(task.recipe, state.step, task.steps_per_epoch)
        optim.set_learning_rate(state.optimizer, rate)
        loss = self._forward_backward(batches, progress)
        self._require_finite(loss, rate)
        state.scaler.unscale_(state.optimizer)
        norm = optim.clip(self.parameters, task.recipe.optimizer.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        self.average_batch_norm()
        state.step += 1
        state.loss_sum, state.loss_steps = state.loss_sum + loss, state.loss_steps + 1
        if state.step % self.settings.log_every == 0:
            self._record({"train/lr": rate, "train/grad_norm": float(norm)}, progress)

    def _forward_backward(self, batches: Iterator[Batch], progress: Progress) -> float:
        """Accumulate the gradient of one global step; return this rank's mean loss."""
        count = self.task.accumulation
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        for index in range(count):
            batch = next(batches)
            # Drop path and dropout of a batch are keyed by what it is, not by what came before.
            reseed(self.seed, "model", *batch.key)
            last = index == count - 1
            with self._no_sync(last):
                with optim.autocast(self.task.recipe, self.ranks.device):
                    loss = self.task.loss(self.model, batch)
                self.state.scaler.scale(loss / count).backward()
            loss_sum += loss.detach()
            progress.images(batch.images * self.ranks.world_size)
        return float(loss_sum / count)

    def _no_sync(self, last: bool) -> AbstractContextManager[None]:
        """Return the context of a backward pass: gradients are summed over ranks in the last."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            context: AbstractContextManager[None] = self.model.no_sync()
            return context
        return nullcontext()

    def _require_finite(self, loss: float, rate: float) -> None:
        (broken,) = self.ranks.any(not math.isfinite(loss))
        if broken:
            raise NotFinite(
                f"the loss is not finite (rank {self.ranks.rank} has {loss}) at step "
                f"{self.state.step} of {self.total_steps}, learning rate {rate:.3g}; lower "
                "optimizer.lr or raise schedule.warmup_epochs in params/recipes.yaml, or use "
                "precision bf16 or fp32",
                self.state.step,
            )

    def _attend(self) -> None:
        """Between two steps: save when it is time, stop when it was asked for."""
        due = time.monotonic() - self.saved_at > self.settings.checkpoint_seconds
        stop, due = self.ranks.any(self.stop.asked, due)
        if stop or due:
            self._save()
        if stop:
            self.writer.wait()
            self.ranks.barrier()
            raise Stopped(
                f"stopped after step {self.state.step} of {self.total_steps}; state saved"
            )

    def _close_epoch(self, progress: Progress) -> dict[str, float]:
        """Evaluate if it is this epoch's turn, write it down, save."""
        done, metrics = self.state.epochs + 1, {}
        if done % self.task.recipe.eval_every == 0 or done == self.epochs:
            metrics = self.task.evaluate()
        self.state.epochs = done
        value = metrics.get(self.task.headline)
        if value is not None and (self.state.best is None or value > self.state.best):
            self.state.best, self.state.best_step = value, self.state.step
        self._record({f"eval/{name}": value for name, value in metrics.items()}, progress)
        progress.epoch(done, metrics)
        self._save()
        return metrics

    def _record(self, metrics: dict[str, float], progress: Progress) -> None:
        """Add to the journal the mean loss since the last record, and `metrics`."""
        state = self.state
        if state.loss_steps:
            (total,) = self.ranks.sum(state.loss_sum)
            loss = total / self.ranks.world_size / state.loss_steps
            metrics = {"train/loss": loss, **metrics}
            progress.loss(loss)
        state.loss_sum, state.loss_steps = 0.0, 0
        if self.journal is not None and metrics:
            self.journal.append(state.step, state.epochs, metrics, progress.system())

    def _save(self) -> None:
        """Hand a copy of the state to the writer; it puts the journal on disk first."""
        now = time.monotonic()
        self.state.seconds += now - self.counted_at
        self.saved_at = self.counted_at = now
        if self.journal is not None:
            self.state.journal = self.journal.position
            self.writer.submit(self.state.snapshot(), self.state.best_step, self.journal.sync)


def _wrap(model: nn.Module, ranks: Ranks) -> nn.Module:
    if ranks.world_size == 1:
        return model
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(
        model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
    )
