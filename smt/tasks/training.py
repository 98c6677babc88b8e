"""One run from its first step to its exported weights."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from smt import fingerprint
from smt.data import manifest
from smt.engine.distributed import Ranks
from smt.engine.preempt import StopRequest
from smt.engine.progress import Progress, duration
from smt.engine.trainer import NotFinite, Settings, Trainer
from smt.engine.workdir import exclusive
from smt.errors import TrainingError, UserError
from smt.files import explained, read_json, sha256, write_json
from smt.layout import Layout
from smt.models import weights
from smt.spec import Project, Run
from smt.tasks.classify import Classification
from smt.tracking import journal, provenance

log = logging.getLogger(__name__)

TASKS = {"classify": Classification}


class RunTraining:
    """Trains one run where it stands, and leaves `metrics.json` and `model.safetensors`."""

    def __init__(self, project: Project, layout: Layout, run: Run, ranks: Ranks) -> None:
        self.project, self.layout, self.run, self.ranks = project, layout, run, ranks
        self.digests = manifest.digests(project, layout, run)
        self.content = fingerprint.content(project, run, self.digests)
        self.fingerprint = fingerprint.fingerprint(project, run, self.digests)
        self.work_dir = layout.work_dir(run, self.fingerprint)

    def is_done(self) -> bool:
        """Whether this very run has been trained, and its weights are those it exported."""
        metrics = read_json(self.layout.metrics(self.run))
        path = self.layout.weights(self.run)
        return (
            metrics is not None
            and metrics["fingerprint"] == self.fingerprint
            and path.exists()
            and sha256(path) == metrics["weights_sha256"]
        )

    def train(self, stop: StopRequest, checkpoint_seconds: float) -> dict[str, float]:
        """Train to the end and return the final metrics.

        Raises:
            Stopped: a signal asked for it; the same command goes on from there.
            UserError: what stands in the way, in one line; training errors are left in
                `failure.json` for the tables and for the runs that start from this one.
        """
        lock = exclusive(self.work_dir) if self.ranks.is_first else nullcontext()
        with lock, self._log_file(), self._failures_recorded():
            started = time.time()
            parent = self._require_parent()
            task = TASKS[self.content["task"]](self.project, self.layout, self.run, self.ranks)
            trainer = self._trainer(task, stop, checkpoint_seconds)
            if self.ranks.is_first:
                provenance.record_attempt(self.work_dir, self._facts(parent), trainer.state.step)
            metrics = self._run(trainer)
            if self.ranks.is_first:
                self._export(trainer, metrics, started)
            self.ranks.barrier()
        return metrics

    def _trainer(
        self, task: Classification, stop: StopRequest, checkpoint_seconds: float
    ) -> Trainer:
        return Trainer(
            task,
            self.work_dir,
            seed=self.run.seed,
            ranks=self.ranks,
            settings=Settings(self.project.scale.log_every, checkpoint_seconds),
            stop=stop,
        )

    def _run(self, trainer: Trainer) -> dict[str, float]:
        recipe = trainer.task.recipe
        progress = Progress(
            str(self.run),
            epochs=recipe.schedule.epochs,
            epoch_images=trainer.task.steps_per_epoch * recipe.global_batch,
            ranks=self.ranks,
        )
        progress.start_at(trainer.state.step * recipe.global_batch)
        if trainer.state.step and self.ranks.is_first:
            log.info("%s: goes on after step %d", self.run, trainer.state.step)
        remedy = "mend that and run the same command again: it goes on from its last checkpoint"
        with progress, explained(self.work_dir, remedy, TrainingError):
            return trainer.train(progress)

    def _export(self, trainer: Trainer, metrics: dict[str, float], started: float) -> None:
        """Write the weights, then the numbers: the numbers are there only with their weights."""
        run, path = self.run, self.layout.weights(self.run)
        names = {"experiment": run.experiment, "seed": run.seed, "scale": self.layout.scale}
        digest = weights.save(
            trainer.task.model.state_dict(),
            path,
            {"fingerprint": self.fingerprint, **{key: str(value) for key, value in names.items()}},
        )
        recipe = trainer.task.recipe
        write_json(
            self.layout.metrics(run),
            {
                **names,
                "fingerprint": self.fingerprint,
                "task": self.content["task"],
                "metrics": metrics or {"train_loss": self._last_train_loss()},
                "epochs": trainer.state.epochs,
                "steps": trainer.state.step,
                "images": trainer.state.step * recipe.global_batch,
                "weights_sha256": digest,
                "wall_seconds": round(trainer.state.seconds, 3),
                "finished": time.time(),
            },
        )
        log.info(
            "%s: done in %s, %s; weights in %s",
            run,
            duration(time.time() - started),
            ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()),
            path,
        )

    def _facts(self, parent: dict[str, Any] | None) -> dict[str, Any]:
        """Return what provenance says of the run and does not change between attempts."""
        experiment = self.project.experiments[self.run.experiment]
        recipe = self.project.recipes[experiment.recipe]
        gpus = [torch.cuda.get_device_name()] if self.ranks.device.type == "cuda" else []
        return {
            "fingerprint": self.fingerprint,
            "scale": self.layout.scale,
            "experiment": self.run.experiment,
            "seed": self.run.seed,
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
            "environment": {
                "world_size": self.ranks.world_size,
                "threads": torch.get_num_threads(),
                "device": self.ranks.device.type,
                "precision": recipe.precision,
            },
        }

    def _require_parent(self) -> dict[str, Any] | None:
        """Return who the parent is; its weights are there and are those of its fingerprint."""
        parent = self.project.parent(self.run)
        if parent is None:
            return None
        expected = self.content["parent"]
        metrics = read_json(self.layout.metrics(parent))
        remedy = (
            f"run: smt train {parent.experiment} --seed {parent.seed} --scale {self.layout.scale}"
        )
        if metrics is None or metrics["fingerprint"] != expected:
            cause = provenance.failure(self.layout.work_dir(parent, expected))
            state = f"failed: {cause}" if cause else "has not been trained with these params"
            raise TrainingError(f"{self.run} starts from {parent}, which {state}; {remedy}")
        path = self.layout.weights(parent)
        if not path.exists() or sha256(path) != metrics["weights_sha256"]:
            raise TrainingError(
                f"{self.run} starts from {path}, which is not the file that {parent} exported; "
                f"{remedy}"
            )
        return {
            "experiment": parent.experiment,
            "seed": parent.seed,
            "fingerprint": expected,
            "weights_sha256": metrics["weights_sha256"],
        }

    def _last_train_loss(self) -> float:
        losses = (record.metrics.get("train/loss") for record in journal.read(self.work_dir, 0))
        return [loss for loss in losses if loss is not None][-1]

    @contextmanager
    def _failures_recorded(self) -> Iterator[None]:
        step: int | None = None
        try:
            yield
        except UserError as error:
            step = error.step if isinstance(error, NotFinite) else None
            if self.ranks.is_first and self.work_dir.exists():
                _record_failure(self.work_dir, str(error), step)
            raise

    @contextmanager
    def _log_file(self) -> Iterator[None]:
        """Send the log to the run's own file as well, on rank 0."""
        if not self.ranks.is_first:
            yield
            return
        handler = logging.FileHandler(self.work_dir / "train.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            handler.close()


def _record_failure(work_dir: Path, message: str, step: int | None) -> None:
    try:
        provenance.record_failure(work_dir, message, step)
    except OSError as error:
        log.warning(
            "the cause could not be left in %s: %s", work_dir, os.strerror(error.errno or 0)
        )
