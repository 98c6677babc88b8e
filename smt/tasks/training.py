"""One run from its first step to its exported weights."""

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from smt.config import fingerprint
from smt.config.deviation import deviation
from smt.config.experiments import Run
from smt.config.project import Project
from smt.datasets import manifest, validation_files
from smt.engine import cpus, rendezvous
from smt.engine.determinism import NondeterminismRecorder
from smt.engine.distributed import Ranks
from smt.engine.preempt import StopRequest
from smt.engine.progress import Progress, duration
from smt.engine.protocol import Task
from smt.engine.trainer import RETRY, Settings, Trainer
from smt.errors import TrainingError
from smt.models import weights
from smt.models.compiled import explained_compilation
from smt.models.smt import set_recompute
from smt.runs import journal, milestones, provenance, record, shared_folder, source
from smt.runs.atomic import explained, sha256
from smt.runs.checkpoint_files import checkpoints
from smt.runs.claim import Claim, claimed
from smt.runs.lock import is_job
from smt.runs.paths import Layout
from smt.runs.record import Extent, Parent, RunMetrics
from smt.tasks import environment, resume_check
from smt.tasks.build import build_task
from smt.tasks.failures import Failures
from smt.tasks.log_file import log_file

log = logging.getLogger(__name__)

LONGEST_WAIT = rendezvous.START_TIMEOUT.total_seconds() / 2
"""Seconds for which rank 0 waits for the lock of its run: the others wait in a collective."""


@dataclass(frozen=True)
class Options:
    """How a run is trained where that does not change its result."""

    checkpoint_seconds: float
    checkpoint_steps: int | None
    stall_seconds: float
    workers: int | None
    """Data workers of each process; None: as its CPUs allow."""
    allow_change: bool = False
    """Resume although code or params have changed since the run began, and record that."""


class RunTraining:
    """Trains one run from its newest checkpoint; writes `metrics.json` and `model.safetensors`."""

    def __init__(self, project: Project, layout: Layout, run: Run, ranks: Ranks) -> None:
        self.project, self.layout, self.run, self.ranks = project, layout, run, ranks
        self.digests = manifest.digests(project, layout, run)
        self.content = fingerprint.content(project, run, self.digests)
        self.fingerprint = fingerprint.fingerprint(project, run, self.digests)
        self.work_dir = layout.work_dir(run, self.fingerprint)
        self.names: dict[str, Any] = {
            "experiment": run.experiment,
            "seed": run.seed,
            "scale": layout.scale,
            "fingerprint": self.fingerprint,
        }
        self.source: dict[str, str] = {}
        self._claim: Claim | None = None

    def is_done(self) -> bool:
        """Whether this very run has been trained, and its weights are those it exported.

        Raises:
            DamagedRecord: it may have been: its final numbers cannot be read.
        """
        metrics = record.read_metrics(self.layout, self.run)
        path = self.layout.weights(self.run)
        return (
            metrics is not None
            and metrics.fingerprint == self.fingerprint
            and shared_folder.exists(path)
            and sha256(path) == metrics.weights_sha256
        )

    def train(self, stop: StopRequest, options: Options) -> dict[str, float]:
        """Train to the end and return the final metrics; those of another process that just did.

        Raises:
            TrainingStopped: a signal asked for it; the same command resumes.
            PeerLost: another process of the training was killed; the same.
            RunHeld: in a job, another process holds the run; the same.
            ClaimLost: another process has taken over the run; nothing is written any more.
            PeerFailed: another process of the training failed and recorded why.
            UserError: the cause, in one line; training errors are recorded in
                `failure.json` for the tables and for the runs that start from this one.
        """
        started = time.monotonic()
        failures = Failures(self.run, self.ranks, self.work_dir)
        with ExitStack() as stack:
            stack.enter_context(failures.detect_peer_loss())
            done = self._enter_claim(stack, options)
            if done is not None:
                return done
            stack.enter_context(failures.record())
            stack.enter_context(failures.detect_lost_claim(self.claim))
            workers = cpus.data_workers(options.workers, self.ranks)
            with self.ranks.fail_together():
                parent = self._require_parent()
                changes = self._require_unchanged(options) if self.ranks.is_first else []
                if self.ranks.is_first:
                    self._require_trainable()
                    dataset = self.project.dataset_of(self.run.experiment)
                    validation_files.require_unchanged(self.project, self.layout, dataset)
                task = build_task(self.project, self.layout, self.run, self.ranks, workers=workers)
            set_recompute(task.model, self._recomputes)
            with explained(self.work_dir, RETRY, TrainingError):
                trainer = self._trainer(task, stop, options)
            if self.ranks.is_first:
                self._record_attempt(parent, trainer, changes, workers)
            stop.defer_signals()
            rendezvous.limit_steps(options.stall_seconds)
            with NondeterminismRecorder(self._record_not_deterministic):
                metrics = self._run(trainer)
            if self.ranks.is_first:
                self._export(trainer, metrics, started)
            self.ranks.barrier()
        return metrics

    def _enter_claim(self, stack: ExitStack, options: Options) -> dict[str, float] | None:
        """Claim the run on all ranks; return its metrics if another process has finished it."""
        done: dict[str, float] | None = None
        with self.ranks.fail_together():
            if self.ranks.is_first:
                wait = min(options.stall_seconds, LONGEST_WAIT) if is_job() else None
                self._claim = stack.enter_context(claimed(self.work_dir, wait))
                done = self._final_metrics()
                if done is None:
                    provenance.forget_failure(self.work_dir)
                    with explained(self.work_dir, RETRY, TrainingError):
                        stack.enter_context(log_file(self.work_dir / provenance.LOG))
        self._claim, done = self.ranks.broadcast((self._claim, done))
        return done

    def _final_metrics(self) -> dict[str, float] | None:
        """Return the metrics of the run if it is done by now, or None."""
        final = record.read_metrics(self.layout, self.run) if self.is_done() else None
        return dict(final.metrics) if final is not None else None

    @property
    def claim(self) -> Claim:
        """The claim of this training on its run."""
        assert self._claim is not None
        return self._claim

    @property
    def _recomputes(self) -> bool:
        on_gpu = self.ranks.device.type == "cuda"
        return self.project.recomputes(self.run.experiment, on_gpu=on_gpu)

    def _require_trainable(self) -> None:
        """Refuse a model of timm whose first step would fail, as on an image that it cannot take.

        Raises:
            UserError: names file and key.
        """
        if self.project.experiments[self.run.experiment].model in self.project.smt_models:
            return
        from smt.tasks.sizes import require_trainable  # timm takes seconds

        require_trainable(self.project, self.run.experiment)

    def _trainer(self, task: Task, stop: StopRequest, options: Options) -> Trainer:
        return Trainer(
            task,
            self.work_dir,
            seed=self.run.seed,
            ranks=self.ranks,
            settings=Settings(
                self.project.scale.log_every,
                options.checkpoint_seconds,
                options.checkpoint_steps,
                options.stall_seconds,
                milestones.epochs(task.recipe.schedule.epochs, self.project.scale.keep_milestones),
            ),
            stop=stop,
            identity=self.names,
            permit=self.claim.require,
        )

    def _run(self, trainer: Trainer) -> dict[str, float]:
        recipe = trainer.task.recipe
        recipe_name = self.project.experiments[self.run.experiment].recipe
        progress = Progress(
            str(self.run),
            epochs=recipe.schedule.epochs,
            epoch_images=trainer.task.steps_per_epoch * recipe.global_batch,
            ranks=self.ranks,
        )
        progress.resume_at(trainer.state.step * recipe.global_batch)
        if trainer.state.step and self.ranks.is_first:
            log.info("%s: resumes after step %d", self.run, trainer.state.step)
        with (
            progress,
            explained(self.work_dir, RETRY, TrainingError),
            explained_compilation(recipe_name, recipe.FILE),
        ):
            return trainer.train(progress)

    def _export(self, trainer: Trainer, metrics: dict[str, float], started: float) -> None:
        """Write the weights before the numbers: `metrics.json` marks a run as done."""
        run, path = self.run, self.layout.weights(self.run)
        digest = weights.save(
            trainer.task.model.state_dict(),
            path,
            {key: str(value) for key, value in self.names.items()},
            self.claim.require,
        )
        self.claim.require()
        recipe, ended = trainer.task.recipe, time.time()
        known = provenance.finish(self.work_dir, ended)
        attempts = known.attempts
        final = RunMetrics(
            **self.names,
            task=self.content["task"],
            metrics=metrics or {"train_loss": self._last_train_loss()},
            epochs=trainer.state.epochs,
            steps=trainer.state.step,
            images=trainer.state.step * recipe.global_batch,
            skipped_steps=trainer.state.loss_statistics.skipped,
            changes=[change for attempt in attempts for change in attempt.changes],
            weights_sha256=digest,
            journal=Extent(**journal.extent(self.work_dir / journal.JOURNAL)),
            times=Extent(**journal.extent(self.work_dir / journal.TIMES)),
            provenance_sha256=sha256(self.work_dir / record.PROVENANCE),
            wall_seconds=round(trainer.state.seconds, 3),
            gpu_seconds=provenance.gpu_seconds(attempts),
            finished=ended,
        )
        if known.deviations:
            final = final.model_copy(update={"deviations": list(known.deviations)})
        self.claim.require()
        record.write(self.layout.metrics(run), final)
        log.info(
            "%s: done in %s, %s; weights in %s",
            run,
            duration(time.monotonic() - started),
            ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()),
            path,
        )

    def _facts(self, parent: Parent | None) -> dict[str, Any]:
        """Return what provenance says of the run and does not change between attempts."""
        experiment = self.project.experiments[self.run.experiment]
        recipe = self.project.recipe_of(self.run.experiment)
        gpus = [torch.cuda.get_device_name()] if self.ranks.device.type == "cuda" else []
        return {
            **self.names,
            "params": self.content,
            "names": {
                "task": experiment.task,
                "model": experiment.model,
                "recipe": experiment.recipe,
                "dataset": recipe.dataset,
                "group": experiment.group,
            },
            "data": self.digests,
            "parent": parent,
            "hardware": provenance.hardware(gpus),
            "environment": environment.of(self.ranks, recipe).model_copy(
                update={"precision": recipe.precision}
            ),
            "source": self.source,
            "not_deterministic": [],
        }

    def _record_attempt(
        self, parent: Parent | None, trainer: Trainer, changes: list[str], workers: int
    ) -> None:
        """Record this attempt, and warn where its environment differs from the last one's."""
        now = environment.of(self.ranks, trainer.task.recipe)
        before = record.read_provenance(self.work_dir)
        last = before.attempts[-1].environment if before else None
        if trainer.state.step and last:
            for sentence in resume_check.environment_changes(last, now):
                log.warning("%s: resumes with %s", self.run, sentence)
        deviates = deviation(self.project, self.run.experiment, self.ranks.world_size)
        if deviates is not None:
            log.warning("%s: %s", self.run, deviates)
        attempt = {
            "resumed_at_step": trainer.state.step,
            "environment": now,
            "workers": workers,
            "recompute": self._recomputes,
            **({"deviation": deviates} if deviates is not None else {}),
            "log_every": self.project.scale.log_every,
            "changes": changes,
        }
        self.claim.require()
        provenance.record_attempt(self.work_dir, self._facts(parent), attempt)

    def _record_not_deterministic(self, operations: list[str]) -> None:
        log.warning(
            "%s: nondeterministic on this device, so that the last bits may differ from one "
            "attempt to the next: %s", self.run, ", ".join(operations),
        )  # fmt: skip
        if self.ranks.is_first:
            self.claim.require()
            provenance.update(self.work_dir, not_deterministic=operations)

    def _require_unchanged(self, options: Options) -> list[str]:
        """Return what has changed since the run began, in phrases, if that is allowed.

        Raises:
            TrainingError: code or params are others than those that a half-done run was begun with.
        """
        self.source = source.digests()
        command = record.train_command(self.layout, self.run)
        allow = f"{command} --allow-change (SMT_ALLOW_CHANGE=1 where Snakemake runs it)"
        saved = checkpoints(self.work_dir)
        if saved:
            before = record.read_provenance(self.work_dir)
            changes = source.changes(before.source if before else {}, self.source)
            if changes and not options.allow_change:
                raise TrainingError(
                    f"{self.work_dir}: this run began with other code: {_listed(changes)}; "
                    "restore that code to resume it, or resume anyway, which is recorded: "
                    f"{allow}; or move the folder away to start again"
                )
            return changes
        other = resume_check.unfinished_run(self.layout.run_dir(self.run), self.work_dir)
        if other is None:
            return []
        differences = resume_check.param_changes(other.provenance.params, self.content)
        if not options.allow_change:
            raise TrainingError(
                f"{other.work_dir}: this run is unfinished, at step {other.step}, with other "
                f"params: {_listed(differences)}; restore them to resume it, or start again "
                f"with the present ones, which is recorded: {allow}"
            )
        provenance.update(other.work_dir, given_up={"for": self.fingerprint, "at": time.time()})
        log.warning(
            "%s: starts again; %s stays as it was, at step %d",
            self.run, other.work_dir, other.step,
        )  # fmt: skip
        return []

    def _require_parent(self) -> Parent | None:
        """Return who the parent is; its weights are there and are those of its fingerprint."""
        parent = self.project.parent(self.run)
        if parent is None:
            return None
        expected = self.content["parent"]
        metrics = record.read_metrics(self.layout, parent)
        remedy = f"run: {record.train_command(self.layout, parent)}"
        if metrics is None or metrics.fingerprint != expected:
            failure = record.read_failure(self.layout.work_dir(parent, expected))
            state = (
                f"failed: {failure.message}"
                if failure
                else "has not been trained with these params"
            )
            raise TrainingError(f"{self.run} starts from {parent}, which {state}; {remedy}")
        path = self.layout.weights(parent)
        if not shared_folder.exists(path) or sha256(path) != metrics.weights_sha256:
            raise TrainingError(
                f"{self.run} starts from {path}, which is not the file that {parent} exported; "
                f"{remedy}"
            )
        return Parent(
            experiment=parent.experiment,
            seed=parent.seed,
            fingerprint=expected,
            weights_sha256=metrics.weights_sha256,
        )

    def _last_train_loss(self) -> float:
        losses = (line.metrics.get("train/loss") for line in journal.read(self.work_dir, 0))
        return [loss for loss in losses if loss is not None][-1]


def _listed(changes: list[str], most: int = 6) -> str:
    """Return the first few of a list of changes, and how many more there are."""
    more = f" and {len(changes) - most} more" if len(changes) > most else ""
    return ", ".join(changes[:most]) + more
