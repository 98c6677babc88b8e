"""The files that a training writes in its work folder while it runs, and the lock on it."""

import fcntl
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smt.runs import heartbeat, journal, record, shared_folder
from smt.runs.checkpoint_files import CheckpointName, checkpoints
from smt.runs.heartbeat import Beat
from smt.runs.lock import LOCK
from smt.runs.record import Attempt

_FLOCK = "hhqqi"
"""struct flock of Linux on 64 bits: type, whence, start, length, process."""


@dataclass(frozen=True)
class WorkDirSnapshot:
    """Progress and files of the last attempt at a run."""

    work_dir: Path
    attempts: int
    """Starts of the training that came as far as its data and its model."""
    started: float
    """Unix seconds: when the last of them started; 0 without any."""
    resumed_at: int
    """Global steps done when it started."""
    beat: Beat | None
    """Its last heartbeat."""
    host: str
    """Where it runs or ran; empty where that is not known."""
    process: int | None
    job: str
    """Its SLURM job, or empty."""
    checkpoint_step: int | None
    """Step of the newest checkpoint: where another attempt would resume."""
    failure: str
    """Cause of the last attempt's failure, or empty."""
    failed_at: float
    locked: bool | None
    """Whether a process holds the folder to train; None where the file system cannot tell."""

    @property
    def step(self) -> int:
        """Global steps done by the last attempt."""
        return self.beat.step if self.beat else self.resumed_at

    @property
    def has_begun(self) -> bool:
        return bool(self.attempts) or self.checkpoint_step is not None

    def journal_lines(self) -> list[journal.TimedLine]:
        """Return the journal; nothing where it cannot be read."""
        try:
            return journal.read(self.work_dir, 0.0)
        except ValueError:
            return []


def read(work_dir: Path) -> WorkDirSnapshot:
    """Return the snapshot of a work folder, also of a run without an attempt.

    Raises:
        DamagedRecord: its provenance, or the cause of its failure, is damaged.
    """
    provenance, failure = record.read_provenance(work_dir), record.read_failure(work_dir)
    attempts = provenance.attempts if provenance else ()
    locked, holder = is_locked(work_dir / LOCK), _holder(work_dir / LOCK)
    last, checkpoint_step = attempts[-1] if attempts else None, newest_checkpoint(work_dir)
    beat = heartbeat.read(work_dir)
    if locked and holder.get("pid") != (last.pid if last else None):
        # Another attempt has begun, and has still to read its data and to write down that it did.
        started = (work_dir / LOCK).stat().st_mtime
        last, beat = Attempt(started=started, resumed_at_step=checkpoint_step or 0), None
    started = last.started if last else 0.0
    return WorkDirSnapshot(
        work_dir=work_dir,
        attempts=len(attempts),
        started=started,
        resumed_at=last.resumed_at_step if last else 0,
        beat=beat if beat and beat.time >= started else None,
        host=holder.get("host", ""),
        process=holder.get("pid"),
        job=(last.slurm_job_id if last else None) or "",
        checkpoint_step=checkpoint_step,
        failure=failure.message if failure else "",
        failed_at=failure.time if failure else 0.0,
        locked=locked,
    )


def newest_checkpoint(work_dir: Path) -> int | None:
    """Return the step of a run's newest checkpoint, or None without any."""
    paths = checkpoints(work_dir)
    return CheckpointName.of(paths[0]).step if paths else None


def is_locked(path: Path) -> bool | None:
    """Return whether a process holds a lock on a file, without touching it; None: no telling.

    That the lock of this very process is not seen is how locks of POSIX are.
    """
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        shared_folder.refresh(path)
        with path.open("rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _holder(path: Path) -> dict[str, Any]:
    """Return host and pid of the process that holds a lock, or held it last."""
    try:
        holder = json.loads(shared_folder.read_bytes(path))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}
