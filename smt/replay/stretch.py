"""One stretch of a run, trained again by the code that trained it, and compared."""

import json
import math
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from smt.engine.determinism import NondeterminismRecorder
from smt.engine.distributed import Ranks
from smt.engine.preempt import StopRequest
from smt.engine.progress import Progress
from smt.engine.protocol import Task
from smt.engine.trainer import Settings, Trainer
from smt.errors import TrainingError
from smt.models.smt import set_recompute
from smt.replay.subject import Subject
from smt.runs import lock, source
from smt.runs.atomic import explained
from smt.runs.checkpoint_files import FOLDER, checkpoints
from smt.runs.journal import JOURNAL
from smt.runs.milestones import Stretch
from smt.runs.record import Attempt, Environment
from smt.runs.replays import Replay
from smt.tasks import environment
from smt.tasks.build import build_task
from smt.verify import tensors
from smt.verify.milestones import file_of

REMEDY = "make room there, or give a folder that can be written: smt --results DIR"

LAST_BITS = ("world_size", "threads", "device", "processor", "driver", "cuda", "cudnn", "nccl",
             "tf32", "deterministic_algorithms", "compiled")  # fmt: skip
"""What of an environment decides the last bits of sums."""


@contextmanager
def scratch(folder: Path) -> Iterator[None]:
    """Hold a folder for one audit; in the end nothing of it is left.

    What an audit that was killed has left in it is removed first.

    Raises:
        TrainingError: another audit of the run is at work.
    """
    with lock.exclusive(folder, does="audits"):
        shutil.rmtree(folder / "work", ignore_errors=True)
        try:
            yield
        finally:
            shutil.rmtree(folder)


@dataclass(frozen=True)
class Replayer:
    """Trains stretches of a run again, in a folder of its own, on all ranks."""

    subject: Subject
    ranks: Ranks
    stop: StopRequest
    workers: int

    @property
    def folder(self) -> Path:
        """Work folder of the stretch that is trained; the run's own is only read."""
        return self.subject.layout.audit_dir(self.subject.run) / "work"

    def replay(self, stretch: Stretch) -> Replay:
        """Train a stretch again and return what came of it, the same on every rank.

        Raises:
            TrainingStopped: a signal asked for it.
            TrainingError: the folder of the audit cannot be written.
        """
        subject, ranks = self.subject, self.ranks
        with ranks.fail_together(), explained(self.folder, REMEDY, TrainingError):
            if ranks.is_first:
                self._prepare(stretch)
        operations: list[str] = list(subject.provenance.not_deterministic)
        with NondeterminismRecorder(operations.extend):
            self._train(stretch)
        here = environment.of(ranks, subject.project.recipe_of(subject.run.experiment))
        outcome = None
        with ranks.fail_together():
            if ranks.is_first:
                outcome = self._compare(stretch, here, operations)
                shutil.rmtree(self.folder)
        replay: Replay | None = ranks.broadcast(outcome)
        assert replay is not None
        return replay

    def _prepare(self, stretch: Stretch) -> None:
        """Make the work folder as the run's own was at the start of the stretch."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / FOLDER).mkdir(parents=True)
        content = self._journal()[: stretch.start.end]
        (self.folder / JOURNAL).write_bytes(content)
        if stretch.start.step:
            path = file_of(self.subject.work_dir, stretch.start)
            assert path is not None  # all were verified
            (self.folder / FOLDER / path.name).symlink_to(path.resolve())

    def _train(self, stretch: Stretch) -> None:
        subject, run = self.subject, self.subject.run
        recipe = subject.project.recipe_of(run.experiment)
        task = build_task(
            subject.project, subject.layout, run, self.ranks, inherit=stretch.start.step == 0,
            workers=self.workers,
        )  # fmt: skip
        on_gpu = self.ranks.device.type == "cuda"
        set_recompute(task.model, subject.project.recomputes(run.experiment, on_gpu=on_gpu))
        trainer = self._trainer(task, stretch)
        if trainer.state.step != stretch.start.step:
            raise TrainingError(f"{self.folder}: {stretch} does not start at its checkpoint")
        progress = Progress(
            f"{run}, {stretch}",
            epochs=stretch.end.epochs,
            epoch_images=task.steps_per_epoch * recipe.global_batch,
            ranks=self.ranks,
        )
        progress.resume_at(stretch.start.step * recipe.global_batch)
        with progress, explained(self.folder, REMEDY, TrainingError):
            trainer.train(progress, until=stretch.end.epochs)
        if trainer.journal is not None:
            trainer.journal.close()

    def _trainer(self, task: Task, stretch: Stretch) -> Trainer:
        subject, final = self.subject, self.subject.final
        return Trainer(
            task,
            self.folder,
            seed=subject.run.seed,
            ranks=self.ranks,
            settings=Settings(
                log_every=_log_every(subject.attempts(stretch), subject.project.scale.log_every),
                checkpoint_seconds=math.inf,
                stall_seconds=60 * subject.project.scale.stall_minutes,
                milestones=frozenset(each.end.epochs for each in subject.stretches),
            ),
            stop=self.stop,
            identity={
                "experiment": final.experiment,
                "seed": final.seed,
                "scale": final.scale,
                "fingerprint": final.fingerprint,
            },
        )

    def _compare(self, stretch: Stretch, here: Environment, operations: list[str]) -> Replay:
        recorded = self._journal()[: stretch.end.end]
        again = (self.folder / JOURNAL).read_bytes()
        # The last line of both holds the digest of the state that the stretch ends in.
        unlike = [*self._unlike(stretch, here), *(f"{name} is not deterministic" for name in
                  dict.fromkeys(operations))]  # fmt: skip
        is_equal = recorded == again
        return Replay(
            start_step=stretch.start.step,
            end_step=stretch.end.step,
            outcome="equal" if is_equal else "undecided" if unlike else "differs",
            difference="" if is_equal else self._difference(stretch, recorded, again),
            unlike=unlike,
            environment=here,
            host=socket.gethostname(),
            at=time.time(),
        )

    def _difference(self, stretch: Stretch, recorded: bytes, again: bytes) -> str:
        """Return the first tensor and the first line of the journal that differ."""
        line = _first_difference(recorded, again)
        own, other = file_of(self.subject.work_dir, stretch.end), checkpoints(self.folder)[0]
        assert own is not None
        names = sorted(tensors.differing(own, other, ""))
        if not names:
            return f"no tensor, but {line}"
        more = f" and {len(names) - 1} more" if names[1:] else ""
        return f"tensor {names[0]}{more} at step {stretch.end.step}; {line}"

    def _unlike(self, stretch: Stretch, here: Environment) -> Iterator[str]:
        """Yield what differs here from where the stretch was trained: machine, versions, code."""
        attempts = self.subject.attempts(stretch)
        for key in LAST_BITS:
            then = {getattr(each.environment, key, None) for each in attempts} - {None}
            now = getattr(here, key)
            if now is not None and then - {now}:
                yield f"{key} {', '.join(sorted(map(str, then)))}, here {now}"
        yield from source.changes(self.subject.provenance.source, source.digests())

    def _journal(self) -> bytes:
        return (self.subject.work_dir / JOURNAL).read_bytes()


def _log_every(attempts: Sequence[Attempt], default: int) -> int:
    """Return the steps between two records of attempts, which provenance has as one more key."""
    recorded = [(attempt.model_extra or {}).get("log_every") for attempt in attempts]
    return next((int(steps) for steps in recorded if steps is not None), default)


def _first_difference(recorded: bytes, again: bytes) -> str:
    pairs = zip(recorded.splitlines(), again.splitlines(), strict=False)
    for number, (one, other) in enumerate(pairs, 1):
        if one != other:
            step = json.loads(other)["step"]
            return f"{JOURNAL} from line {number} on, step {step}"
    counts = [content.count(b"\n") for content in (recorded, again)]
    return f"{JOURNAL} has {counts[0]} lines by then, trained again {counts[1]}"
