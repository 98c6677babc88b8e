"""The state of one job that this run of Snakemake tracks."""

import enum
import time
from dataclasses import dataclass, field
from pathlib import Path

from snakemake_executor_plugin_submitit import shared_folder
from snakemake_executor_plugin_submitit.job_step import JobStep
from snakemake_executor_plugin_submitit.registry import Record
from snakemake_executor_plugin_submitit.resources import Request


class Phase(enum.Enum):
    """What is to be done next for a job."""

    MATCH = enum.auto()
    """Look for a job of an earlier Snakemake run that makes the same outputs."""
    AWAIT_CONFLICTS = enum.auto()
    """Wait until cancelled jobs of earlier Snakemake runs no longer write to its outputs."""
    SUBMIT = enum.auto()
    MONITOR = enum.auto()


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `message` is None for success, otherwise one line with the cause."""

    message: str | None = None
    log: Path | None = None
    """The job's log, if it has one that explains a failure."""


@dataclass
class TrackedJob:
    """A job of Snakemake whose end has not been reported yet. Times are monotonic seconds."""

    new_record: Record
    """Its record if this run of Snakemake submits it."""
    step: JobStep
    request: Request
    outputs: list[str]
    rule_logs: list[str]
    forced: bool = False
    """Whether the user forces it to run (-f, -F, -R)."""
    phase: Phase = Phase.MATCH
    phase_start: float = field(default_factory=time.monotonic)
    """Earlier polls of SLURM say nothing about this phase."""
    first_try: float | None = None
    """When its submission was first tried."""
    next_try: float = 0.0
    retry_delay: float = 1.0
    """Seconds until a failed submission is tried again."""
    needs_status: bool = False
    """Whether MATCH needs SLURM's status of an earlier job."""
    inactive_polls: int = 0
    """Polls of SLURM in a row in which it was not active."""
    last_poll: float = 0.0
    """The latest poll that was handled for this job."""
    reattached: bool = False
    """Whether an earlier Snakemake run submitted it, and it was not active in any poll since."""
    attempts: int = 0
    delay_skipped: float = float("-inf")
    """When SLURM was last asked to skip its delay of a requeued job."""
    pending_reason: str = ""
    """SLURM's reason in the last poll, if it was pending."""
    conflicts: list[Record] = field(default_factory=list)
    """Jobs of earlier Snakemake runs that make some of its outputs and cannot be reattached."""

    def __post_init__(self) -> None:
        self.record = self.new_record
        """`new_record`, or that of the earlier job that was reattached."""

    @property
    def job_id(self) -> str | None:
        """Its id in SLURM, or None before its submission."""
        return self.record.job_id if self.phase is Phase.MONITOR else None

    def is_marked_incomplete(self) -> bool:
        """Return whether Snakemake has yet to record outputs of this job, which has succeeded.

        A Snakemake that starts meanwhile requests the job again.
        """
        return any(shared_folder.exists(path) for path, _ in self.step.marks)

    def enter(self, phase: Phase) -> None:
        """Begin another phase."""
        self.phase, self.phase_start, self.inactive_polls = phase, time.monotonic(), 0
        self.needs_status = False

    def accept_poll(self, poll_time: float) -> bool:
        """Return whether a poll of SLURM is new to this job, and began after its phase did."""
        if poll_time <= max(self.phase_start, self.last_poll):
            return False
        self.last_poll = poll_time
        return True
