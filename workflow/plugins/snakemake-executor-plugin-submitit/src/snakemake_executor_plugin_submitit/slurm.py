"""Questions to SLURM. None is the answer where SLURM gives none: it delays, and decides nothing."""

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

TIMEOUT = 30.0
"""Seconds that a question may take."""

_OF_TOOLS = ("SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_", "SRUN_", "SALLOC_",
             "SLURM_")  # fmt: skip
"""Beginnings of variables that SLURM's programs read as options, or that a job has around it."""

ALIVE = {
    "PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_FED",
    "REQUEUE_HOLD", "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED",
    "RESV_DEL_HOLD",
}  # fmt: skip
"""States of a job that runs, or will. All others are final."""


@dataclass(frozen=True)
class Status:
    """What SLURM says of a job."""

    state: str
    """As RUNNING, TIMEOUT, CANCELLED; see `man squeue`."""
    reason: str = ""
    """Why it waits or ended, as SLURM gives it, or empty."""
    by: str = ""
    """Who cancelled it, where that is known."""
    exit: str = ""
    """Exit code and signal of the batch step, as 0:9, where that is known."""

    @property
    def is_alive(self) -> bool:
        """Whether the job runs, or will."""
        return self.state in ALIVE


GONE = Status("GONE")
"""A job that SLURM has forgotten: it ended more than MinJobAge ago."""


def is_of_tools(variable: str) -> bool:
    """Return whether SLURM's programs must not see a variable of the environment.

    Options of the user's own would go before what a rule asks for, or hide jobs that run; and a
    Snakemake that itself runs in a job must not hand on that job's size and numbers.
    """
    return variable.startswith(_OF_TOOLS) and variable != "SLURM_CONF"


def environment() -> dict[str, str]:
    """Return this process's environment as SLURM's programs are to see it."""
    return {name: value for name, value in os.environ.items() if not is_of_tools(name)}


def statuses() -> dict[str, Status] | None:
    """Return the status of each of this user's jobs that SLURM still holds in memory."""
    output = _ask("squeue", "--me", "--noheader", "--states=all", "--format=%A|%T|%r")
    if output is None:
        return None
    found = {}
    for line in output.splitlines():
        number, state, reason = line.split("|", 2)
        found[number] = Status(state.strip(), "" if reason.strip() == "None" else reason.strip())
    return found


def find(name: str) -> list[str] | None:
    """Return the numbers of this user's jobs of a name, those that ended lately included."""
    output = _ask("squeue", "--me", "--noheader", "--states=all", "--format=%A", f"--name={name}")
    return None if output is None else output.split()


def accounted(job_id: str) -> Status | None:
    """Return what accounting has of a job, or None where there is none or it does not answer."""
    output = _ask(
        "sacct", "--noheader", "--parsable2", "--allocations", "--format=State,Reason,ExitCode",
        f"--jobs={job_id}",
    )  # fmt: skip
    lines = (output or "").splitlines()
    if not lines:
        return None
    state, reason, code = lines[-1].split("|")
    word, _, by = state.partition(" by ")
    return Status(word.split()[0], "" if reason == "None" else reason, by, code)


def described(job_id: str) -> Status | None:
    """Return what the controller still knows of a job: GONE if nothing, None if it is silent."""
    output, errors = _ask_whole("scontrol", "--oneliner", "show", "job", job_id)
    if not output:
        return GONE if "Invalid job id" in errors else None
    fields = dict(word.partition("=")[::2] for word in output.split())
    reason = fields.get("Reason", "None")
    return Status(
        fields.get("JobState", "UNKNOWN"),
        "" if reason == "None" else reason,
        exit=fields.get("ExitCode", ""),
    )


def node_of(job_id: str) -> str | None:
    """Return the node on which a job's command ran or runs."""
    output = _ask("squeue", "--noheader", "--states=all", "--format=%B", f"--jobs={job_id}")
    return output.strip() or None if output else None


def cancel(job_ids: Iterable[str]) -> bool:
    """Cancel jobs; return whether SLURM took it."""
    numbers = list(job_ids)
    return not numbers or _ask("scancel", "--quiet", *numbers) is not None


def start_soon(job_id: str) -> None:
    """Take the hold off a job that was requeued: SLURM makes it wait for two minutes.

    Not at once: a node refuses what begins within the second in which the attempt before was ended,
    for it knows the two apart by the second of their credentials ("Job already killed, do not
    launch batch job").
    """
    _ask("scontrol", "update", f"jobid={job_id}", "StartTime=now+1")


def _ask(*command: str) -> str | None:
    return _ask_whole(*command)[0]


def _ask_whole(*command: str) -> tuple[str | None, str]:
    """Return what a program says, None if it fails; and what it says on stderr."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, check=False,
            stdin=subprocess.DEVNULL, env=environment(),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None, ""
    return (done.stdout if done.returncode == 0 else None), done.stderr
