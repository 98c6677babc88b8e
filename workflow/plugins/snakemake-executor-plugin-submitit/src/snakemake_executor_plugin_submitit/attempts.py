"""The attempts at a job, in files beside it, and when to stop requeueing. Used on every host.

A job's command may report its progress: each time that it has saved its state, it writes a short
text, like `step 1200`, to the file that SNAKEMAKE_SUBMITIT_PROGRESS names. It may request a
requeue: before it fails, it writes to the file that SNAKEMAKE_SUBMITIT_RESUME names. The text
`blocked` says that another process holds what it needs.

Attempts are appended, by each host to a file of its own: NFS loses lines that two hosts append to
one file, as where a host that SLURM has given up still runs the attempt before.
"""

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from snakemake_executor_plugin_submitit import shared_folder

PROGRESS_VARIABLE = "SNAKEMAKE_SUBMITIT_PROGRESS"
RESUME_VARIABLE = "SNAKEMAKE_SUBMITIT_RESUME"

# Why an attempt ended. These texts are stored in the files of attempts.
DONE = "done"
FAILED = "failed"
SIGNALLED = "stopped on the signal before its time limit"
RESUME_REQUESTED = "requested a requeue"
UNRESPONSIVE = "did not stop on the signal before its time limit"
ABORTED = "was killed by a signal after it had reported progress"
TERMINATED = "was terminated by SLURM"
LOST = "ended without an exit status"
BLOCKED = "was blocked by another process and requested a requeue"

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
    number: int = 0
    """Its place in their order, which clocks of several hosts do not give."""


class Attempts:
    """The attempts at one job: their files, and those that its command writes or reads."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key
        self._host = re.sub(r"[^\w.-]", "_", socket.gethostname())
        self.progress_file = folder / f"{key}.progress"
        self.resume_file = folder / f"{key}.resume"
        self.input_list = folder / f"{key}.inputs"
        """The inputs for which the command waits, if there are many."""

    def read(self) -> list[Attempt]:
        """Return all attempts, the latest last."""
        attempts = [attempt for path in self._logs() for attempt in _read_log(path)]
        return sorted(attempts, key=lambda attempt: (attempt.number, attempt.started))

    def begin(self, job_id: str, node: str) -> None:
        """Record the start of an attempt."""
        shared_folder.refresh(self.resume_file)  # another host may have written it
        self.resume_file.unlink(missing_ok=True)
        number = max((attempt.number for attempt in self.read()), default=0) + 1
        attempt = Attempt(job_id, node, time.time(), self.progress(), number=number)
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
        return shared_folder.exists(self.resume_file)

    def files(self) -> list[Path]:
        """Return all files of these attempts, some of which may not exist."""
        return [*self._logs(), self.progress_file, self.resume_file, self.input_list]

    def _logs(self) -> list[Path]:
        """Return the files to which hosts have appended, by a listing of the folder."""
        return sorted(self._folder.glob(f"{self._key}.*.attempts"))

    def _append(self, event: dict[str, object]) -> None:
        path = self._folder / f"{self._key}.{self._host}.attempts"
        with path.open("a", encoding="utf-8") as file:
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


def _read_log(path: Path) -> Iterator[Attempt]:
    """Yield the attempts on one host, in the order in which they began."""
    attempt: Attempt | None = None
    for line in _read_text(path).splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # the last line, if the node failed while writing it
            continue
        if "end" not in event:
            if attempt is not None:
                yield attempt
            attempt = Attempt(**event)
        elif attempt is not None and attempt.job_id == event["job_id"]:
            attempt = replace(attempt, end=event["end"])
    if attempt is not None:
        yield attempt


def _read_text(path: Path) -> str:
    try:
        return shared_folder.read_bytes(path).decode(errors="replace")
    except FileNotFoundError:
        return ""
