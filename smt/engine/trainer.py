"""The training loop, one for all tasks."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from smt.data.rng import reseed
from smt.engine import checkpoint, guard, optim, requeue
from smt.engine.distributed import BatchNormBuffers, PeerFailed, Ranks, data_parallel
from smt.engine.preempt import StopRequest
from smt.engine.progress import Progress
from smt.engine.protocol import EvaluationInterrupted, MicroBatch, Task
from smt.engine.resources import ResourceMonitor
from smt.engine.training_state import TrainingState
from smt.engine.watchdog import Watchdog
from smt.errors import TrainingError
from smt.runs import checkpoint_files, journal, milestones
from smt.runs.atomic import Permit, explained
from smt.runs.heartbeat import Heartbeat
from smt.runs.journal import Journal, Position

RETRY = "fix that and run the same command again: it resumes from its last checkpoint"
"""What to do about a file that could not be written."""


class TrainingStopped(Exception):
    """The training was asked to stop; its state is saved and it can be resumed."""


@dataclass(frozen=True)
class Settings:
    """What does not change the result of a training."""

    log_every: int
    """Steps between two records of the journal."""
    checkpoint_seconds: float
    """Longest time between two checkpoints."""
    checkpoint_steps: int | None = None
    """Most steps between two checkpoints; there is one at the end of every epoch in any case."""
    stall_seconds: float = 3600.0
    """Time without a step after which the process ends, to be started again."""
    milestones: frozenset[int] = frozenset()
    """Closed epochs at which a checkpoint is kept, and recorded in the journal; nothing else."""


@dataclass(frozen=True)
class StepDecision:
    """What all ranks agree on once a step."""

    loss: float
    """Mean over all ranks."""
    stop: bool
    save: bool


class Trainer:
    """Trains a task from its newest checkpoint, or from the start, to its last epoch.

    Raises:
        TrainingError: all checkpoints are damaged, or they are of another run.
    """

    def __init__(
        self, task: Task, work_dir: Path, *, seed: int, ranks: Ranks, settings: Settings,
        stop: StopRequest, identity: Mapping[str, Any] | None = None,
        permit: Permit | None = None,
    ) -> None:  # fmt: skip
        """Load the state; `permit` is asked before each checkpoint, see `atomic.publish`."""
        self.task, self.work_dir, self.seed = task, work_dir, seed
        self.ranks, self.settings, self.stop = ranks, settings, stop
        self.epochs = task.recipe.schedule.epochs
        self.state = TrainingState(
            task.model,
            optim.adamw(task.model, task.recipe.optimizer),
            optim.loss_scaler(task.recipe, ranks.device),
            identity=identity or {},
        )
        self.last_saved: tuple[int, int] | None = None
        """Position of the newest checkpoint: step, closed epochs."""
        self._resume()
        self.saved_at = self.counted_at = time.monotonic()
        folder = work_dir if ranks.is_first else None
        self.writer = checkpoint.Writer(self.checkpoints, permit)
        self.journal = Journal(work_dir, self.state.journal) if ranks.is_first else None
        recorded = milestones.read(work_dir) if ranks.is_first else []
        self.kept = {(each.step, each.epochs) for each in recorded}
        """Positions of the milestones so far, on rank 0."""
        self.heartbeat = Heartbeat(work_dir) if ranks.is_first else None
        self.watchdog = Watchdog(work_dir, ranks.rank, settings.stall_seconds)
        self.resources = ResourceMonitor(folder, self.state.bytes, ranks.device)
        self.model = data_parallel(task.model, ranks)
        self.batch_norm = BatchNormBuffers(task.model)
        self.parameters = [p for p in task.model.parameters() if p.requires_grad]
        self.buckets_settled = ranks.world_size == 1

    def _resume(self) -> None:
        """Load the newest checkpoint, the same one on every rank."""
        with self.ranks.fail_together():
            if self.ranks.is_first:
                checkpoint.remove_temporary_files(self.checkpoints)
            newest = checkpoint.load_newest(self.checkpoints, self._refusal)
            if newest is not None:
                self.state.restore(newest)
                self.last_saved = newest.step, newest.epochs
        with self.ranks.fail_together():
            if not self.ranks.all_equal(self.state.step):
                raise TrainingError(
                    f"{self.checkpoints}: rank {self.ranks.rank} finds step {self.state.step}, "
                    "another rank finds another step; wait until the shared folder shows all nodes "
                    "the same files, and run the same command again"
                )

    def _refusal(self, facts: Mapping[str, Any]) -> str | None:
        return journal.refusal(self.work_dir, Position(**facts["journal"]))

    @property
    def checkpoints(self) -> Path:
        """Folder of this run's checkpoints."""
        return self.work_dir / checkpoint_files.FOLDER

    @property
    def total_steps(self) -> int:
        """Global steps of the whole run."""
        return self.epochs * self.task.steps_per_epoch

    def train(self, progress: Progress, until: int | None = None) -> dict[str, float]:
        """Train to the end and return the metrics of the last epoch.

        `until`: train until so many epochs are closed, of all.

        Raises:
            TrainingStopped: a signal asked for it; the state is saved.
            TrainingDiverged: the recipe's guard stops; the message names step and learning rate.
            OSError: a checkpoint or the journal could not be written.
            Exception: that of `permit`.
            PeerFailed: rank 0 could not write.
        """
        metrics: dict[str, float] | None = None
        self._check_resources()
        with self.watchdog:
            try:
                while self.state.epochs < (until or self.epochs):
                    self._finish_steps(progress)
                    if self.state.epochs + 1 == self.epochs:
                        statistics = self.state.loss_statistics
                        self._refuse(guard.problem_of_end(statistics, self.parameters))
                    metrics = self._close_epoch(progress)
                self.writer.wait()
                return metrics if metrics is not None else self._evaluate(progress)
            finally:
                self.writer.close()

    def _finish_steps(self, progress: Progress) -> None:
        """Take the steps that are left of the epoch."""
        start = self.state.step - self.state.epochs * self.task.steps_per_epoch
        loaded = progress.measured(self.task.micro_batches(self.state.epochs, start))
        with closing(loaded):
            micro_batches: Iterator[MicroBatch] = loaded
            for _ in range(start, self.task.steps_per_epoch):
                if not self.buckets_settled:
                    micro_batches = self._settle_buckets(micro_batches)
                decision = self.step(micro_batches, progress)
                self._report_alive()
                if decision.save or decision.stop:
                    self._save(progress)
                if decision.stop:
                    self._stop()

    def step(self, micro_batches: Iterator[MicroBatch], progress: Progress) -> StepDecision:
        """Take one global step, or skip it if the guard says so."""
        state, recipe = self.state, self.task.recipe
        rate = optim.learning_rate(recipe, state.step, self.task.steps_per_epoch)
        optim.set_learning_rate(state.optimizer, rate)
        before = self.batch_norm.copy() if recipe.guard.policy == "skip" else []
        loss, norm, scale = self._clip(self._forward_backward(micro_batches, progress))
        decision = self._exchange(loss)
        values = {"train/lr": rate}
        problem = guard.problem_of_loss(recipe.guard, state.loss_statistics, decision.loss)
        if problem is None:
            problem = guard.problem_of_gradient(norm, scale)
            values |= {"train/grad_norm": norm} if math.isfinite(norm) else {}
        if problem is None:
            state.scaler.step(state.optimizer)
            state.scaler.update()
            self.batch_norm.average(self.ranks.world_size)
            state.loss_statistics = state.loss_statistics.after(decision.loss)
            state.loss_sum, state.loss_steps = state.loss_sum + decision.loss, state.loss_steps + 1
        else:
            self._skip_step(problem, rate, before, progress)
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.step % self.settings.log_every == 0:
            self._record(values, progress)
        return decision

    def _forward_backward(
        self, micro_batches: Iterator[MicroBatch], progress: Progress
    ) -> torch.Tensor:
        """Accumulate the gradient of one global step; return this rank's mean loss, a scalar."""
        count = self.task.accumulation_steps
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        for index in range(count):
            batch = next(micro_batches)
            last = index == count - 1
            with self._no_sync(last):
                loss = self._loss(batch)
                self.state.scaler.scale(loss / count).backward()
            loss_sum += loss.detach()
            progress.images(batch.images * self.ranks.world_size)
        return loss_sum / count

    def _clip(self, loss: torch.Tensor) -> tuple[float, float, float | None]:
        """Unscale and clip the gradient.

        Return `loss`, float64, the gradient's norm before, and the scale if there is a loss scaler:
        all read at once, so that the host waits for a GPU once.
        """
        scaler = self.state.scaler
        scaler.unscale_(self.state.optimizer)
        norm = optim.clip(self.parameters, self.task.recipe.optimizer.clip_norm)
        scale = scaler.scale(torch.ones_like(loss))
        numbers = torch.stack([loss, norm.double(), scale]).tolist()
        return numbers[0], numbers[1], numbers[2] if scaler.is_enabled() else None

    def _loss(self, batch: MicroBatch) -> torch.Tensor:
        """Return the loss of a micro-batch, with drop path and dropout seeded by its key."""
        reseed(self.seed, "model", *batch.key)
        with optim.autocast(self.task.recipe, self.ranks.device):
            return self.task.loss(self.model, batch)

    def _no_sync(self, last: bool) -> AbstractContextManager[None]:
        """Return the context of a backward pass: gradients are summed over ranks in the last."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            context: AbstractContextManager[None] = self.model.no_sync()
            return context
        return nullcontext()

    def _settle_buckets(self, micro_batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        """Return `micro_batches` unchanged, once DDP has rebuilt its gradient buckets.

        DDP rebuilds them after the first backward pass of a process, which changes the order in
        which gradients are summed over ranks. A process that resumes at step n would then sum the
        gradients of step n in another order than one that came from step n - 1, and with three
        ranks or more that gives other bits. Two backward passes whose gradients are dropped leave
        the buckets as they stay.
        """
        first, before = next(micro_batches), self.batch_norm.copy()
        for _ in range(2):
            self._loss(first).backward()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.batch_norm.restore(before)
        self.buckets_settled = True
        return chain([first], micro_batches)

    def _exchange(self, loss: float) -> StepDecision:
        """All-reduce the loss, and whether any rank asks to stop or to save, at once.

        Ranks that did not decide together would save different steps, or wait for one that ended.

        Raises:
            OSError: the last checkpoint could not be written.
            PeerFailed: the same, on the ranks that do not write.
        """
        interval, step = self.settings.checkpoint_steps, self.state.step + 1
        is_due = time.monotonic() - self.saved_at > self.settings.checkpoint_seconds
        is_due = is_due or (interval is not None and step % interval == 0)
        total, stop, save, failed = self.ranks.sum(
            loss, self.stop.requested, is_due, self.writer.exit_code
        )
        if failed:
            self.writer.wait()
            raise PeerFailed(int(failed))
        return StepDecision(total / self.ranks.world_size, stop > 0, save > 0)

    def _skip_step(
        self, problem: str, rate: float, batch_norm: list[torch.Tensor], progress: Progress
    ) -> None:
        """Undo what a bad step has changed, and record in the journal that it was skipped."""
        state = self.state
        where = f"at step {state.step} of {self.total_steps}, learning rate {rate:.3g}"
        state.loss_statistics = guard.skip(
            self.task.recipe, state.loss_statistics, problem, state.step, where
        )
        self.batch_norm.restore(batch_norm)
        if state.scaler.is_enabled():
            state.scaler.update(state.scaler.get_scale() * state.scaler.get_backoff_factor())
        if self.journal is not None:
            skipped = {"train/skipped_steps": float(state.loss_statistics.skipped)}
            self.journal.append(state.step, state.epochs, skipped, progress.system())

    def _refuse(self, problem: str | None) -> None:
        """Raise TrainingDiverged if there is a problem with the end of the training."""
        if problem is not None:
            where = f"at step {self.state.step} of {self.total_steps}"
            raise guard.diverged(self.task.recipe, f"{problem}, {where}", self.state.step)

    def _close_epoch(self, progress: Progress) -> dict[str, float]:
        """Evaluate if it is this epoch's turn, write it down, save."""
        done, metrics = self.state.epochs + 1, {}
        if done % self.task.recipe.eval_every == 0 or done == self.epochs:
            if time.monotonic() - self.saved_at > self.settings.checkpoint_seconds / 10:
                self._save(progress)  # killed in the evaluation, a run repeats little more than it
            metrics = self._evaluate(progress, final=done == self.epochs)
            if done == self.epochs:
                self._refuse(guard.problem_of_metrics(metrics))
        self.state.epochs = done
        value = metrics.get(self.task.headline)
        if value is not None and (self.state.best is None or value > self.state.best):
            self.state.best, self.state.best_step = value, self.state.step
        evaluation = {f"eval/{name}": value for name, value in metrics.items()}
        self._record(evaluation, progress, is_milestone=done in self.settings.milestones)
        progress.epoch(done, metrics)
        self._save(progress)
        self._check_resources()
        return metrics

    def _check_resources(self) -> None:
        left = sum(epoch > self.state.epochs for epoch in self.settings.milestones)
        self.resources.check(milestones=left)

    def _evaluate(self, progress: Progress, *, final: bool = True) -> dict[str, float]:
        """Return the metrics; on a stop meanwhile save, and leave them to the next attempt."""

        def interrupted() -> bool:
            self._report_alive()
            return self.stop.requested

        try:
            return self.task.evaluate(interrupted, final=final)
        except EvaluationInterrupted:
            self._save(progress)
            self._stop()
            raise AssertionError("unreachable") from None

    def _record(
        self, metrics: dict[str, float], progress: Progress, *, is_milestone: bool = False
    ) -> None:
        """Add to the journal the mean loss since the last record, `metrics`, and the milestone."""
        state = self.state
        if state.loss_steps:
            loss = state.loss_sum / state.loss_steps
            metrics = {"train/loss": loss, **metrics}
            progress.loss(loss)
        state.loss_sum, state.loss_steps = 0.0, 0
        if self.journal is not None and (metrics or is_milestone):
            digest = self._digest() if is_milestone else None
            self.journal.append(state.step, state.epochs, metrics, progress.system(), digest)

    def _digest(self) -> str:
        """Return the digest of the state as it is now, whose checkpoint is to be kept."""
        self.kept.add((self.state.step, self.state.epochs))
        self.writer.wait()  # the snapshot takes the memory of the one that is being written
        return self.state.snapshot().digest()

    def _report_alive(self) -> None:
        """Report progress to the watchdog, and to who watches the run."""
        self.watchdog.reset()
        if self.heartbeat is not None:
            self.heartbeat.write(self.state.step)

    def _save(self, progress: Progress) -> None:
        """Hand a copy of the state to the writer thread.

        It brings the journal to disk first: a resume cuts the journal back to the position in its
        checkpoint, so the journal on disk must never be shorter than that.
        """
        now = time.monotonic()
        self.state.seconds += now - self.counted_at
        self.saved_at = self.counted_at = now
        if self.last_saved == (self.state.step, self.state.epochs):
            return
        self.last_saved = self.state.step, self.state.epochs
        if self.journal is not None:
            self.state.journal = self.journal.position
            self.writer.wait()
            self.writer.submit(
                self.state.snapshot(),
                self.state.best_step,
                frozenset(self.kept),
                before=self.journal.sync,
                after=partial(requeue.report_progress, self.state.step),
            )
            progress.add_pause(time.monotonic() - now)

    def _stop(self) -> None:
        """End the attempt, once the state is on disk."""
        with self.ranks.fail_together(), explained(self.checkpoints, RETRY, TrainingError):
            self.writer.wait()
        raise TrainingStopped(
            f"stopped after step {self.state.step} of {self.total_steps}; state saved"
        )
