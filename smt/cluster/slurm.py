"""SLURM's client: its programs, run with a timeout and without options of the environment."""

import getpass
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from smt.errors import UserError
from snakemake_executor_plugin_submitit.slurm import environment

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")
"""What submitting jobs takes."""

_TIMEOUT = 30.0
"""Seconds. SLURM's programs try an unreachable controller for minutes."""


class SlurmUnavailable(UserError):
    """A program of SLURM is missing, silent or fails; the message is a phrase that says why."""


@dataclass(frozen=True)
class Answer:
    """Output of a program of SLURM."""

    succeeded: bool
    text: str

    @property
    def reason(self) -> str:
        """Why it failed: its last line, without the program's name."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return re.sub(r"^(\w+: )?((error|fatal): )?", "", lines[-1]) if lines else "no message"


class Limit(NamedTuple):
    """What an account or a quality of service (QOS) allows a user at once."""

    name: str
    submitted_jobs: int
    """Those that wait included."""


class Slurm:
    """The cluster that this machine's SLURM programs reach. Settings are read once.

    Options of SLURM's programs in the environment, such as SBATCH_PARTITION or SQUEUE_STATES, are
    kept from them: the user's own would change what is asked. `timeout` is in seconds.
    """

    def __init__(self, timeout: float = _TIMEOUT) -> None:
        self._timeout = timeout

    def missing(self) -> list[str]:
        """Return the programs that are not on PATH."""
        return [name for name in PROGRAMS if shutil.which(name) is None]

    def ask(self, *command: str, **variables: str) -> Answer:
        """Run a program of SLURM, with more `variables`; return its output, or its errors."""
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
                errors="replace", timeout=self._timeout, env={**environment(), **variables},
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            lines = (late.stderr or b"").decode(errors="replace").strip().splitlines()
            last = f"; its last message: {lines[-1]}" if lines else ""
            return Answer(False, f"no answer in {self._timeout:.0f} s{last}")
        except FileNotFoundError:
            return Answer(False, "not on this machine")
        except OSError as problem:
            return Answer(False, f"cannot be started: {problem.strerror}")
        return Answer(done.returncode == 0, done.stdout if done.returncode == 0 else done.stderr)

    def read(self, *command: str, **variables: str) -> str:
        """Run a program of SLURM, with more `variables`, and return its output.

        Raises:
            SlurmUnavailable: it cannot be started, takes too long, or fails.
        """
        answer = self.ask(*command, **variables)
        if not answer.succeeded:
            words = (word for word in command[:3] if not word.startswith("-"))
            raise SlurmUnavailable(f"{' '.join(words)}: {answer.reason}")
        return answer.text

    @cached_property
    def config(self) -> Mapping[str, str]:
        """The cluster's settings, by their names in slurm.conf."""
        lines = self.read("scontrol", "show", "config").splitlines()
        pairs = (line.split("=", 1) for line in lines if "=" in line)
        return {name.strip(): value.strip() for name, value in pairs}

    @cached_property
    def partitions(self) -> Mapping[str, Mapping[str, str]]:
        """The settings of each partition, by the names that scontrol gives them."""
        lines = self.read("scontrol", "--oneliner", "show", "partition").splitlines()
        return {fields["PartitionName"]: fields for line in lines if (fields := facts(line))}

    @property
    def default_partition(self) -> str | None:
        """The partition of jobs that name none."""
        defaults = (name for name, each in self.partitions.items() if each["Default"] == "YES")
        return next(defaults, None)

    @property
    def has_accounting(self) -> bool:
        """Whether sacct and accounts are there."""
        return self.config["AccountingStorageType"].endswith("slurmdbd")

    @property
    def enforced(self) -> frozenset[str]:
        """What of the accounting a job has to keep to: associations, limits, qos, ..."""
        return frozenset(self.config["AccountingStorageEnforce"].split(","))

    def accounts(self) -> list[str]:
        """Return the accounts of this user."""
        user = f"user={getpass.getuser()}"
        rows = self._accounting("show", "associations", user, "format=account")
        return sorted({account for (account,) in rows})

    def limits(self, account: str | None, qos: str) -> list[Limit]:
        """Return the limits on this user's jobs, in one account or all, and of a QOS."""
        user = f"user={getpass.getuser()}"
        accounts = self._accounting("show", "associations", user, "format=account,maxsubmit")
        services = self._accounting("show", "qos", "format=name,maxsubmitjobsperuser")
        return [
            Limit(f"{kind} {name}", int(jobs))
            for kind, wanted, rows in (("account", account, accounts), ("QOS", qos, services))
            for name, jobs in rows
            if jobs and name == (wanted or name)
        ]

    def _accounting(self, *what: str) -> list[list[str]]:
        lines = self.read("sacctmgr", "--noheader", "--parsable2", *what).splitlines()
        return [line.split("|") for line in lines]


def facts(line: str) -> dict[str, str]:
    """Return the fields of a line of scontrol: NAME=VALUE, with spaces between."""
    return dict(pair.split("=", 1) for pair in line.split() if "=" in pair)


def minutes(limit: str) -> float:
    """Return the minutes of a time limit as SLURM prints it: [DAYS-]HOURS:MINUTES:SECONDS."""
    if limit in ("UNLIMITED", "INFINITE", "NONE", "N/A"):
        return float("inf")
    days, _, clock = limit.rpartition("-")
    hours, mins, seconds = (int(part) for part in clock.split(":"))
    return (int(days or 0) * 24 + hours) * 60 + mins + seconds / 60
