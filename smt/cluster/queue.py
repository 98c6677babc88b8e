"""SLURM's queue: one query for all jobs of this user, and which of them train which run."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from smt.cluster.slurm import Slurm
from smt.config.experiments import Run
from smt.runs.state import Jobs

TIMEOUT = 5.0
"""Seconds to wait for an answer: less than elsewhere, for `smt status` does without SLURM."""

_COLUMNS = {
    "JobID": 20, "State": 20, "Reason": 80, "NodeList": 80, "StartTime": 24, "RestartCnt": 12,
    "Comment": 400,
}  # fmt: skip
"""What is asked of each job, and characters kept for it; squeue cuts off what is longer."""

_ON_NODES = {"RUNNING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"}
_WAITING = {
    "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"
}  # fmt: skip
_BROKEN = {"FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"}


@dataclass(frozen=True)
class Job:
    """A job of this user, waiting, running or lately ended."""

    number: str
    state: str
    """As RUNNING, PENDING, COMPLETING, OUT_OF_MEMORY: see `man squeue`."""
    reason: str
    """Why it waits or ended, as SLURM has it, or empty."""
    nodes: str
    """As n[1-2]; empty while it waits."""
    start: float | None
    """Unix seconds: when it began, or is expected to; None where SLURM cannot tell."""
    requeues: int
    comment: str

    @property
    def is_on_nodes(self) -> bool:
        return self.state in _ON_NODES

    @property
    def is_waiting(self) -> bool:
        return self.state in _WAITING

    @property
    def is_broken(self) -> bool:
        """Whether it ended as no job should."""
        return self.state in _BROKEN

    @property
    def ending(self) -> str:
        """How it ended, in a phrase."""
        state = self.state.replace("_", " ").lower()
        return f"job {self.number} {state}{f' ({self.reason})' if self.reason else ''}"


def comment(scale: str, run: Run, fingerprint: str) -> str:
    """Return the comment of the job that trains a run; its format stands nowhere else.

    The rule that trains gives it to the job, and `Queue` tells jobs apart by it.
    """
    return f"smt {scale} {run} {fingerprint}"


class Queue:
    """The jobs that train runs of one scale; `jobs` is None where SLURM is not reachable."""

    def __init__(self, scale: str, jobs: Iterable[Job] | None) -> None:
        self._scale, self._jobs = scale, tuple(jobs or ())
        on_nodes = frozenset(job.number for job in self._jobs if job.is_on_nodes)
        self._on_nodes = None if jobs is None else on_nodes

    def jobs_of(self, run: Run, fingerprint: str | None) -> Jobs:
        """Return what the queue says of a run; nothing of one whose fingerprint cannot be told."""
        if fingerprint is None:
            return Jobs(on_nodes=self._on_nodes)
        return Jobs(self._own(run, fingerprint), self._other(run, fingerprint), self._on_nodes)

    def _own(self, run: Run, fingerprint: str) -> Job | None:
        """Return the job that trains a run: one on nodes, else one that waits, else the latest."""
        wanted = comment(self._scale, run, fingerprint)
        return _foremost(job for job in self._jobs if job.comment == wanted)

    def _other(self, run: Run, fingerprint: str) -> Job | None:
        """Return a job that trains, or will, what a run was before params or data changed."""
        own, start = comment(self._scale, run, fingerprint), comment(self._scale, run, "")
        return _foremost(
            job
            for job in self._jobs
            if job.comment.startswith(start)
            and job.comment != own
            and (job.is_on_nodes or job.is_waiting)
        )


def _foremost(jobs: Iterable[Job]) -> Job | None:
    def rank(job: Job) -> tuple[bool, bool, int]:
        return job.is_on_nodes, job.is_waiting, int(job.number)

    return max(jobs, key=rank, default=None)


def jobs() -> tuple[Job, ...]:
    """Return this user's jobs that SLURM still holds in memory, by one `squeue`.

    Raises:
        SlurmUnavailable: there is no squeue, it fails, or it takes longer than `TIMEOUT`.
    """
    columns = ",".join(f"{name}:{width}" for name, width in _COLUMNS.items())
    command = ("squeue", "--me", "--noheader", "--states=all", f"--Format={columns}")
    lines = Slurm(TIMEOUT).read(*command, SLURM_TIME_FORMAT="%s").splitlines()
    # With several clusters there are lines that name them.
    return tuple(map(_job, (line for line in lines if line[:1].isdigit())))


def _job(line: str) -> Job:
    ends = list(accumulate(_COLUMNS.values()))
    fields = [line[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)]
    number, state, reason, nodes, start, requeues, comment_of_job = fields
    return Job(
        number=number,
        state=state,
        reason="" if reason in ("None", "N/A") else reason,
        nodes=nodes,
        start=float(start) if start.isdigit() else None,
        requeues=int(requeues) if requeues.isdigit() else 0,
        comment=comment_of_job,
    )
