"""Calls of SLURM's programs. None means that SLURM did not answer: the caller tries again later."""

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

TIMEOUT = 30.0
"""Seconds that one call may take."""

_VARIABLE_PREFIXES = (
    "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_", "SRUN_", "SALLOC_", "SLURM_",
)  # fmt: skip

ACTIVE_STATES = {
    "PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_FED",
    "REQUEUE_HOLD", "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED",
    "RESV_DEL_HOLD",
}  # fmt: skip
"""States of a job that runs, or will. All others are final."""


@dataclass(frozen=True)
class Status:
    """A job's status in SLURM."""

    state: str
    """RUNNING, TIMEOUT, CANCELLED...: see `man squeue`."""
    reason: str = ""
    """Why it is pending or ended, in SLURM's words, or empty."""
    cancelled_by: str = ""
    """User id of who cancelled it, from accounting, or empty."""
    exit: str = ""
    """Exit code and signal of the batch step, like 0:9, or empty."""

    @property
    def is_active(self) -> bool:
        """Whether the job runs, or will."""
        return self.state in ACTIVE_STATES


GONE = Status("GONE")
"""A job that SLURM no longer lists: it ended more than MinJobAge ago."""


def is_slurm_variable(name: str) -> bool:
    """Return whether an environment variable must be hidden from SLURM's programs.

    Options of the user's own (SBATCH_PARTITION) would override a rule's resources, or hide running
    jobs (SQUEUE_STATES). If Snakemake itself runs in a job, SLURM_* describe that job.
    """
    return name.startswith(_VARIABLE_PREFIXES) and name != "SLURM_CONF"


def environment() -> dict[str, str]:
    """Return this process's environment without the variables of `is_slurm_variable`."""
    return {name: value for name, value in os.environ.items() if not is_slurm_variable(name)}


def statuses() -> dict[str, Status] | None:
    """Return the status of each of this user's jobs that squeue lists, by job id."""
    output = _output("squeue", "--me", "--noheader", "--states=all", "--format=%A|%T|%r")
    if output is None:
        return None
    jobs = {}
    for line in output.splitlines():
        job_id, state, reason = line.split("|", 2)
        jobs[job_id] = Status(state.strip(), _reason(reason.strip()))
    return jobs


def find(name: str) -> list[str] | None:
    """Return the ids of this user's jobs with this name, including jobs that ended recently."""
    output = _output("squeue", "--me", "--noheader", "--states=all", "--format=%A",
                     f"--name={name}")  # fmt: skip
    return None if output is None else output.split()


def sacct_status(job_id: str) -> Status | None:
    """Return a job's status in accounting, or None if there is none or it does not answer."""
    output = _output(
        "sacct", "--noheader", "--parsable2", "--allocations", "--format=State,Reason,ExitCode",
        f"--jobs={job_id}",
    )  # fmt: skip
    lines = (output or "").splitlines()
    if not lines:
        return None
    state, reason, code = lines[-1].split("|")
    word, _, user = state.partition(" by ")
    return Status(word.split()[0], _reason(reason), user, code)


def scontrol_status(job_id: str) -> Status | None:
    """Return a job's status in the controller: GONE if it is unknown there, None if no answer."""
    output, errors = _run("scontrol", "--oneliner", "show", "job", job_id)
    if not output:
        return GONE if "Invalid job id" in errors else None
    fields = dict(word.partition("=")[::2] for word in output.split())
    return Status(
        fields.get("JobState", "UNKNOWN"),
        _reason(fields.get("Reason", "None")),
        exit=fields.get("ExitCode", ""),
    )


def batch_node(job_id: str) -> str | None:
    """Return the node on which a job's batch script ran or runs."""
    output = _output("squeue", "--noheader", "--states=all", "--format=%B", f"--jobs={job_id}")
    return output.strip() or None if output else None


def cancel(job_ids: Iterable[str]) -> bool:
    """Cancel jobs; return whether scancel succeeded."""
    ids = list(job_ids)
    return not ids or _output("scancel", "--quiet", *ids) is not None


def skip_requeue_delay(job_id: str) -> None:
    """Make a requeued job eligible now: SLURM delays it by two minutes (cred_expire).

    Not at once: nodes tell the credentials of two attempts apart by their second, and refuse an
    attempt within the second in which the one before ended ("Job already killed, do not launch
    batch job").
    """
    _output("scontrol", "update", f"jobid={job_id}", "StartTime=now+1")


def _reason(text: str) -> str:
    return "" if text == "None" else text


def _output(*command: str) -> str | None:
    return _run(*command)[0]


def _run(*command: str) -> tuple[str | None, str]:
    """Return a program's stdout, or None if it fails, and its stderr."""
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, check=False,
            stdin=subprocess.DEVNULL, env=environment(),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None, ""
    return (process.stdout if process.returncode == 0 else None), process.stderr
