"""The attempts at a job, in a file beside it, and when to stop requeueing. Used on every host.

A job's command may report its progress: each time that it has saved its state, it writes a short
text, like `step 1200`, to the file that SNAKEMAKE_SUBMITIT_PROGRESS names. It may request a
requeue: before it fails, it writes to the file that SNAKEMAKE_SUBMITIT_RESUME names. The text
`blocked` says that another process holds what it needs.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

PROGRESS_VARIABLE = "SNAKEMAKE_SUBMITIT_PROGRESS"
RESUME_VARIABLE = "SNAKEMAKE_SUBMITIT_RESUME"

# Why an attempt ended. These texts are stored in the file of attempts.
DONE = "done"
FAILED = "failed"
SIGNALLED = "stopped on the signal before its time limit"
RESUME_REQUESTED = "asked to be started again"
UNRESPONSIVE = "did not stop on the signal before its time limit"
ABORTED = "was ended by a signal after it had told progress"
TERMINATED = "was ended by SLURM"
LOST = "ended without recording why"
BLOCKED = "waited for another process and asked to be started again"

RESUMABLE_ENDS = (SIGNALLED, RESUME_REQUESTED, UNRESPONSIVE, ABORTED, BLOCKED)
"""Ends after which the job step itself requeues the job."""


@dataclass(frozen=True)
class Attempt:
    """One execution of a job on a node."""

    job_id: str
    node: str
    started: float
    """Unix seconds."""
    progress: str | None
    """Last progress that the command had reported when the attempt started."""
    end: str = LOST
    """One of the constants above. LOST while the attempt runs, or if it was killed."""


class Attempts:
    """The attempts at one job: their file, and those that its command writes or reads."""

    def __init__(self, folder: Path, key: str) -> None:
        self._log = folder / f"{key}.attempts"
        self.progress_file = folder / f"{key}.progress"
        self.resume_file = folder / f"{key}.resume"
        self.input_list = folder / f"{key}.inputs"
        """The inputs for which the command waits, if there are many."""

    def read(self) -> list[Attempt]:
        """Return all attempts, the latest last."""
        attempts: list[Attempt] = []
        for line in _read_text(self._log).splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # the last line, if the node failed while writing it
                continue
            if "end" not in event:
                attempts.append(Attempt(**event))
            elif attempts and attempts[-1].job_id == event["job_id"]:
                attempts[-1] = Attempt(**{**vars(attempts[-1]), "end": event["end"]})
        return attempts

    def begin(self, job_id: str, node: str) -> None:
        """Record the start of an attempt."""
        self.resume_file.unlink(missing_ok=True)
        attempt = Attempt(job_id, node, time.time(), self.progress())
        self._append({name: value for name, value in vars(attempt).items() if name != "end"})

    def end(self, job_id: str, why: str) -> None:
        """Record why the latest attempt ended."""
        self._append({"job_id": job_id, "end": why})

    def is_blocked(self) -> bool:
        """Return whether the command requested the requeue because another process blocks it."""
        return _read_text(self.resume_file).strip() == "blocked"

    def progress(self) -> str | None:
        """Return the last progress that the command reported, or None if there is none."""
        return _read_text(self.progress_file).strip()[:100] or None

    def resume_requested(self) -> bool:
        """Return whether the command requested a requeue during this attempt."""
        return self.resume_file.exists()

    def remove(self) -> None:
        """Remove all files of these attempts."""
        for path in (self._log, self.progress_file, self.resume_file, self.input_list):
            path.unlink(missing_ok=True)

    def _append(self, event: dict[str, object]) -> None:
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())


def stalls(attempts: list[Attempt], progress: str | None) -> int:
    """Return how many of the last attempts made no progress: they started at `progress`.

    Attempts that SLURM ended do not count: a job may be preempted any number of times. Nor do those
    that another process blocked: it may be an earlier attempt, on a host that SLURM does not reach.
    """
    count = 0
    for attempt in reversed(attempts):
        if attempt.progress != progress:
            break
        if attempt.end in (TERMINATED, BLOCKED):
            continue
        count += 1
    return count


def requeue_refusal(
    attempts: list[Attempt], progress: str | None, max_requeues: int, max_stalls: int
) -> str | None:
    """Return why there must be no further attempt, or None if there may be one."""
    if not attempts:
        return None
    last = attempts[-1].end
    if len(attempts) > max_requeues:
        return (
            f"requeued {len(attempts) - 1} times, the last attempt {last}: no requeue is left "
            f"(submitit-max-requeues: {max_requeues})"
        )
    stalled = stalls(attempts, progress)
    if stalled >= max_stalls:
        at = f" beyond {progress!r}" if progress else ""
        return (
            f"{stalled} attempts in a row ended without progress{at}, the last {last}: not "
            f"requeued (submitit-max-stalls: {max_stalls})"
        )
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
