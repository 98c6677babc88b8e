"""Where submitit runs jobs: on SLURM, in local processes, or in Snakemake's own process."""

import contextlib
import io
import os
import pickle
import shlex
import signal
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import submitit

from snakemake_executor_plugin_submitit import slurm
from snakemake_executor_plugin_submitit.internals.submitit import (
    FailedJobError,
    FailedSubmissionError,
    SlurmExecutor,
    without_throttling,
)
from snakemake_executor_plugin_submitit.job_files import log_path, result_path
from snakemake_executor_plugin_submitit.job_step import JobStep
from snakemake_executor_plugin_submitit.resources import Request
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.slurm import GONE, Status


class SubmissionRejected(Exception):
    """SLURM rejected a job, with this message; another try would not help."""


class SubmissionUnconfirmed(Exception):
    """It is not known whether SLURM accepted a job, or it may accept it later."""


class Backend(Protocol):
    """Where jobs run."""

    def submit(self, step: JobStep, request: Request, name: str) -> str:
        """Submit a job; return its id.

        Raises:
            SubmissionRejected: the job is invalid for this cluster.
            SubmissionUnconfirmed: SLURM did not answer, or its queue is full.
        """
        ...

    def statuses(self) -> dict[str, Status] | None:
        """Return the status of every job by its id, or None if SLURM does not answer."""
        ...

    def find(self, name: str) -> list[str] | None:
        """Return the ids of the jobs with a name, or None if SLURM does not answer."""
        ...

    def cancel(self, job_ids: Iterable[str]) -> bool:
        """Cancel jobs; return whether SLURM accepted it."""
        ...


def create_backend(settings: ExecutorSettings, folder: Path) -> Backend:
    """Return the backend for `submitit-cluster`."""
    if settings.cluster == "slurm":
        return SlurmBackend(settings, folder)
    if settings.cluster == "local":
        return LocalBackend(settings, folder)
    return DebugBackend(folder)


_TRANSIENT_ERRORS = (
    "socket timed out", "timed out", "unable to contact", "connection", "try again", "temporarily",
    "not responding", "zero bytes were transmitted", "communication", "send/recv", "no route",
    "transport endpoint", "authentication", "credential", "munge", "in standby mode",
    "maxsubmit", "job submit limit", "too many jobs", "shutting down", "not running",
)  # fmt: skip
"""Parts of sbatch's messages when SLURM does not answer, or its queue is full."""


def is_transient(message: str) -> bool:
    """Return whether sbatch may accept the same job later, going by its error message."""
    return any(part in message.lower() for part in _TRANSIENT_ERRORS)


def _setup(settings: ExecutorSettings) -> list[str]:
    """Return the lines of `submitit-setup` for the batch script; the job fails if they fail."""
    if not settings.setup:
        return []
    message = shlex.quote(f"submitit: setup failed: {settings.setup}")
    return [f"{{ {settings.setup}\n}} || {{ code=$?; echo {message}; exit $code; }}"]


_IGNORE_SIGUSR2 = "trap '' USR2"
"""First line of a batch script: SLURM may signal a short job before its Python has a handler."""


def _await_step(folder: Path) -> str:
    """Return a line of a batch script that waits for the job's pickled step, a minute at most.

    The step is written once sbatch has returned the job's id. A host that looks for it by name too
    early finds it a minute later on NFS; a pattern makes the shell list the folder.
    """
    return (
        "for try in {1..300}; do "
        f"set -- {shlex.quote(str(folder))}/${{SLURM_JOB_ID}}_submitted.pk[l]; "
        '[ -e "$1" ] && break; sleep 0.2; done'
    )


class SlurmBackend:
    """Jobs of SLURM: batch scripts whose shell is replaced by the Python that runs the step."""

    def __init__(self, settings: ExecutorSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        # exec: SLURM sends its signal to the batch shell, and Python handles it.
        self._python = f"exec {settings.python or shlex.quote(sys.executable)}"

    def submit(self, step: JobStep, request: Request, name: str) -> str:
        executor = without_throttling(
            SlurmExecutor(self._folder, max_num_timeout=10**6, python=self._python)
        )
        # An argument, not a line of the script, where sbatch has its own rules of quoting.
        executor.sbatch_arguments = (f"--output={log_path(self._folder, '%j')}", *request.extra)
        executor.hidden_variables = [*filter(slurm.is_slurm_variable, os.environ)]
        executor.update_parameters(**self._parameters(step, request, name))
        try:
            with contextlib.redirect_stderr(
                io.StringIO()
            ):  # submitit prints the message that it raises
                return str(executor.submit(step).job_id)
        except FailedJobError as error:
            self._remove_unsubmitted()
            kind = SubmissionUnconfirmed if is_transient(str(error)) else SubmissionRejected
            raise kind(_one_line(str(error))) from None
        except (FailedSubmissionError, OSError) as error:
            self._remove_unsubmitted()
            raise SubmissionUnconfirmed(_one_line(str(error))) from None
        finally:
            if executor.script is not None:
                executor.script.unlink(missing_ok=True)  # submitit left a link in its place

    def _remove_unsubmitted(self) -> None:
        """Remove the pickle that submitit wrote for a job without an id."""
        for path in self._folder.glob(f"{'[0-9a-f]' * 32}.pkl"):
            path.unlink(missing_ok=True)

    def _parameters(self, step: JobStep, request: Request, name: str) -> dict[str, Any]:
        additional: dict[str, Any] = {
            "signal": f"B:USR2@{step.signal_delay:.0f}" if step.resumable else None,
            "requeue": True,
            "reservation": request.reservation,
            "mem-per-cpu": request.memory_per_cpu,
            "gpus-per-node": request.gpus_per_node,
        }
        parameters: dict[str, Any] = {
            "job_name": name,
            "time": request.minutes,
            "nodes": request.nodes,
            "ntasks_per_node": request.tasks_per_node,
            "cpus_per_task": request.cpus_per_task,
            "mem": request.memory,
            "gres": request.gres,
            "partition": request.partition,
            "account": request.account,
            "qos": request.qos,
            "constraint": request.constraint,
            "comment": request.comment,
            "setup": [_IGNORE_SIGUSR2, _await_step(self._folder), *_setup(self._settings)],
            "stderr_to_stdout": True,
            "use_srun": False,
            "wckey": self._settings.wckey,
            "additional_parameters": {name: value for name, value in additional.items() if value},
        }
        given = {name: value for name, value in parameters.items() if value is not None}
        return {**given, "wckey": self._settings.wckey}

    def statuses(self) -> dict[str, Status] | None:
        return slurm.statuses()

    def find(self, name: str) -> list[str] | None:
        return slurm.find(name)

    def cancel(self, job_ids: Iterable[str]) -> bool:
        return slurm.cancel(job_ids)


class LocalBackend:
    """Local processes, which outlive Snakemake."""

    def __init__(self, settings: ExecutorSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._jobs: dict[str, submitit.LocalJob[Any]] = {}

    def submit(self, step: JobStep, request: Request, name: str) -> str:
        executor = without_throttling(
            submitit.LocalExecutor(
                self._folder, max_num_timeout=10**6, python=self._settings.python
            )
        )
        executor.update_parameters(
            timeout_min=request.minutes,
            signal_delay_s=step.signal_delay,
            gpus_per_node=request.gpus,
            stderr_to_stdout=True,
            setup=_setup(self._settings),
        )
        job = executor.submit(step)
        assert isinstance(job, submitit.LocalJob)
        self._jobs[job.job_id] = job
        return str(job.job_id)

    def statuses(self) -> dict[str, Status] | None:
        ids = {path.name.partition("_")[0] for path in self._folder.glob("*_submitted.pkl")}
        return {job_id: Status("RUNNING") if self._is_running(job_id) else GONE for job_id in ids}

    def _is_running(self, job_id: str) -> bool:
        if job_id in self._jobs:
            return not self._jobs[job_id].done()
        try:
            command = Path(f"/proc/{job_id}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return False
        return "submitit.local._local" in command and str(self._folder) in command

    def find(self, name: str) -> list[str] | None:
        return []

    def cancel(self, job_ids: Iterable[str]) -> bool:
        for job_id in job_ids:
            if self._is_running(job_id):
                os.kill(int(job_id), signal.SIGTERM)
        return True


class DebugBackend:
    """Jobs that run in Snakemake's own process, one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # A job's id is the address of its submission: once freed, the next one may get the same.
        self._jobs: list[submitit.Job[Any]] = []

    def submit(self, step: JobStep, request: Request, name: str) -> str:
        job = submitit.DebugExecutor(self._folder).submit(replace(step, in_process=True))
        self._jobs.append(job)
        with result_path(self._folder, job.job_id).open("wb") as file:
            pickle.dump(("success", job.result()), file)
        return str(job.job_id)

    def statuses(self) -> dict[str, Status] | None:
        return {}

    def find(self, name: str) -> list[str] | None:
        return []

    def cancel(self, job_ids: Iterable[str]) -> bool:
        return True


def _one_line(text: str) -> str:
    """Return the whole message of sbatch on one line."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in text.splitlines()]
    return "; ".join(filter(None, map(str.strip, lines))) or "no message"
