"""What is kept of each attempt at a job, and when to stop trying. Used on the node and off it.

A job's command may say how far it is: it writes any short text, like `step 1200`, to the file that
SNAKEMAKE_SUBMITIT_PROGRESS names, each time that it has saved its state. And it may ask to be
started again: it writes to SNAKEMAKE_SUBMITIT_RESUME before it fails.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

PROGRESS = "SNAKEMAKE_SUBMITIT_PROGRESS"
RESUME = "SNAKEMAKE_SUBMITIT_RESUME"

DONE = "done"
FAILED = "failed"
SIGNALLED = "stopped on the signal before its time limit"
ASKED = "asked to be started again"
UNRESPONSIVE = "did not stop on the signal before its time limit"
ABORTED = "was ended by a signal after it had told progress"
TERMINATED = "was ended by SLURM"
LOST = "was lost without a word"

TO_BE_RESUMED = (SIGNALLED, ASKED, UNRESPONSIVE, ABORTED)
"""Ends after which the attempt itself wanted another one."""


@dataclass(frozen=True)
class Attempt:
    """One start of a job on a node."""

    job_id: str
    node: str
    started: float
    """Unix seconds."""
    progress: str | None
    """How far the command had said to be when the attempt began."""
    end: str = LOST
    """One of the constants above. An attempt that still runs, or was killed, has said nothing."""


class Attempts:
    """The attempts at the job of a key: a file of them, and what its command has to say."""

    def __init__(self, folder: Path, key: str) -> None:
        self._log = folder / f"{key}.attempts"
        self.progress_file = folder / f"{key}.progress"
        self.resume_file = folder / f"{key}.resume"

    def read(self) -> list[Attempt]:
        """Return all attempts, the latest last."""
        attempts: list[Attempt] = []
        for line in _text(self._log).splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # the last line of a node that went down
                continue
            if "end" not in event:
                attempts.append(Attempt(**event))
            elif attempts and attempts[-1].job_id == event["job_id"]:
                attempts[-1] = Attempt(**{**vars(attempts[-1]), "end": event["end"]})
        return attempts

    def begin(self, job_id: str, node: str) -> None:
        """Add an attempt that begins now."""
        self.resume_file.unlink(missing_ok=True)
        attempt = Attempt(job_id, node, time.time(), self.progress())
        self._append({name: value for name, value in vars(attempt).items() if name != "end"})

    def end(self, job_id: str, why: str) -> None:
        """Say why the latest attempt ended."""
        self._append({"job_id": job_id, "end": why})

    def progress(self) -> str | None:
        """Return what the command last said of how far it is, or None if it never did."""
        return _text(self.progress_file).strip()[:100] or None

    def asked_to_resume(self) -> bool:
        """Return whether the command has asked, in this attempt, to be started again."""
        return self.resume_file.exists()

    def remove(self) -> None:
        """Forget all of it."""
        for path in (self._log, self.progress_file, self.resume_file):
            path.unlink(missing_ok=True)

    def _append(self, event: dict[str, object]) -> None:
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())


def stalls(attempts: list[Attempt], progress: str | None) -> int:
    """Return how many of the last attempts ended where they had begun, at `progress`.

    Attempts that SLURM ended do not count: a job may be preempted however often.
    """
    count = 0
    for attempt in reversed(attempts):
        if attempt.progress != progress:
            break
        if attempt.end == TERMINATED:
            continue
        count += 1
    return count


def refusal(
    attempts: list[Attempt], progress: str | None, max_requeues: int, max_stalls: int
) -> str | None:
    """Return why there is to be no further attempt, or None if there may be one."""
    if not attempts:
        return None
    last = attempts[-1].end
    if len(attempts) > max_requeues:
        return (
            f"started again {len(attempts) - 1} times, the last attempt {last}: no requeue is left "
            f"(submitit-max-requeues: {max_requeues})"
        )
    stalled = stalls(attempts, progress)
    if stalled >= max_stalls:
        at = f" beyond {progress!r}" if progress else ""
        return (
            f"{stalled} attempts in a row ended without progress{at}, the last {last}: not started "
            f"again (submitit-max-stalls: {max_stalls})"
        )
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
