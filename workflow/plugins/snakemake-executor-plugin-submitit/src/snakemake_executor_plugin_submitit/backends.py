"""The three places where submitit runs jobs, behind one face."""

import contextlib
import io
import os
import pickle
import shlex
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import submitit

from snakemake_executor_plugin_submitit import slurm
from snakemake_executor_plugin_submitit.internals.submitit import (
    FailedJobError,
    FailedSubmissionError,
    JobPaths,
    SlurmExecutor,
    without_pauses,
)
from snakemake_executor_plugin_submitit.job_step import JobStep
from snakemake_executor_plugin_submitit.resources import Request
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.slurm import GONE, Status


class SubmissionRejected(Exception):
    """The cluster will not take a job as it is; the message is its own."""


class SubmissionUnconfirmed(Exception):
    """The cluster did not say whether it took a job."""


class Backend(Protocol):
    """Where jobs run."""

    def submit(self, step: JobStep, request: Request, name: str) -> str:
        """Hand on a job; return its number.

        Raises:
            SubmissionRejected: it will not be taken, however often it is tried.
            SubmissionUnconfirmed: it may be taken later, or has been.
        """
        ...

    def statuses(self) -> dict[str, Status] | None:
        """Return the status of every job, or None if nobody answers now."""
        ...

    def find(self, name: str) -> list[str] | None:
        """Return the numbers of jobs of a name, or None if nobody answers now."""
        ...

    def cancel(self, job_ids: Iterable[str]) -> bool:
        """Cancel jobs; return whether that was taken."""
        ...


def backend(settings: ExecutorSettings, folder: Path) -> Backend:
    """Return the backend that the settings choose."""
    if settings.cluster == "slurm":
        return SlurmBackend(settings, folder)
    if settings.cluster == "local":
        return LocalBackend(settings, folder)
    return DebugBackend(folder)


def result_name(job_id: str) -> str:
    """Return the name of the file that holds a job's result."""
    return JobPaths(".", job_id=job_id, task_id=0).result_pickle.name


def log_path(folder: Path, job_id: str) -> Path:
    """Return the log of a job: all its attempts, one after the other."""
    return JobPaths(folder, job_id=job_id, task_id=0).stdout


def submitted(folder: Path, job_id: str) -> Path:
    """Return the file from which a job learns what to do."""
    return JobPaths(folder, job_id=job_id, task_id=0).submitted_pickle


def read_result(folder: Path, job_id: str) -> dict[str, Any]:
    """Return exit code and message of a job that has ended by itself, and whether it ever began."""
    with (folder / result_name(job_id)).open("rb") as file:
        kind, value = pickle.load(file)  # submitit's own file, in a folder of this user alone
    if kind == "success":
        assert isinstance(value, dict)
        return {**value, "began": True}
    last = str(value).strip().splitlines()[-1]
    message = f"the job could not begin: {last}"
    return {"exit_code": 1, "message": message, "requeues": 0, "began": False}


def remove_files(folder: Path, job_id: str, keep_log: bool) -> None:
    """Remove what submitit wrote for a job."""
    paths = JobPaths(folder, job_id=job_id, task_id=0)
    for path in (paths.submitted_pickle, paths.result_pickle, paths.submission_file):
        path.unlink(missing_ok=True)
    if not keep_log:
        paths.stdout.unlink(missing_ok=True)


# What sbatch says where the controller is away or full for now. All else is an answer to the job.
_TRANSIENT = (
    "socket timed out", "timed out", "unable to contact", "connection", "try again", "temporarily",
    "not responding", "zero bytes were transmitted", "communication", "send/recv", "no route",
    "transport endpoint", "authentication", "credential", "munge", "in standby mode",
    "maxsubmit", "job submit limit", "too many jobs", "shutting down", "not running",
)  # fmt: skip


def is_transient(message: str) -> bool:
    """Return whether what sbatch says means that it may take this job later."""
    said = message.lower()
    return any(sign in said for sign in _TRANSIENT)


def _setup(settings: ExecutorSettings) -> list[str]:
    """Return what a job's shell runs first; if that fails, so does the job."""
    if not settings.setup:
        return []
    failed = shlex.quote(f"submitit: setup failed: {settings.setup}")
    return [f"{{ {settings.setup}\n}} || {{ code=$?; echo {failed}; exit $code; }}"]


_HEEDLESS = "trap '' USR2"
"""First line of a batch script: SLURM may signal a short job at once, before its Python listens."""


class SlurmBackend:
    """Jobs of SLURM, each one `sbatch` whose shell becomes the Python that runs the step."""

    def __init__(self, settings: ExecutorSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        # exec: the batch shell must not stand between SLURM's signal and who heeds it.
        self._python = f"exec {settings.python or shlex.quote(sys.executable)}"

    def submit(self, step: JobStep, request: Request, name: str) -> str:
        executor = without_pauses(
            SlurmExecutor(self._folder, max_num_timeout=10**6, python=self._python)
        )
        # As an argument the path needs no quotes, of which sbatch knows other rules in a script.
        executor.further = (f"--output={log_path(self._folder, '%j')}", *request.extra)
        executor.kept_away = [*filter(slurm.is_of_tools, os.environ)]
        executor.update_parameters(**self._parameters(step, request, name))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # it prints what it raises as well
                return str(executor.submit(step).job_id)
        except FailedJobError as error:
            self._remove_drafts()
            kind = SubmissionUnconfirmed if is_transient(str(error)) else SubmissionRejected
            raise kind(_in_one_line(str(error))) from None
        except (FailedSubmissionError, OSError) as error:
            self._remove_drafts()
            raise SubmissionUnconfirmed(_in_one_line(str(error))) from None
        finally:
            if executor.script is not None:
                executor.script.unlink(missing_ok=True)  # by now a link to the script

    def _remove_drafts(self) -> None:
        """Remove what submitit wrote for a job that got no number."""
        for path in self._folder.glob(f"{'[0-9a-f]' * 32}.pkl"):
            path.unlink(missing_ok=True)

    def _parameters(self, step: JobStep, request: Request, name: str) -> dict[str, Any]:
        more: dict[str, Any] = {
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
            "setup": [_HEEDLESS, *_setup(self._settings)],
            "stderr_to_stdout": True,
            "use_srun": False,
            "wckey": self._settings.wckey,
            "additional_parameters": {name: value for name, value in more.items() if value},
        }
        kept = {name: value for name, value in parameters.items() if value is not None}
        return {**kept, "wckey": self._settings.wckey}

    def statuses(self) -> dict[str, Status] | None:
        return slurm.statuses()

    def find(self, name: str) -> list[str] | None:
        return slurm.find(name)

    def cancel(self, job_ids: Iterable[str]) -> bool:
        return slurm.cancel(job_ids)


class LocalBackend:
    """Processes of this machine that outlive Snakemake."""

    def __init__(self, settings: ExecutorSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._jobs: dict[str, submitit.LocalJob[Any]] = {}

    def submit(self, step: JobStep, request: Request, name: str) -> str:
        executor = without_pauses(
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
        numbers = {path.name.partition("_")[0] for path in self._folder.glob("*_submitted.pkl")}
        return {each: Status("RUNNING") if self._runs(each) else GONE for each in numbers}

    def _runs(self, job_id: str) -> bool:
        if job_id in self._jobs:
            return not self._jobs[job_id].done()
        try:
            said = Path(f"/proc/{job_id}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return False
        return "submitit.local._local" in said and str(self._folder) in said

    def find(self, name: str) -> list[str] | None:
        return []

    def cancel(self, job_ids: Iterable[str]) -> bool:
        for each in job_ids:
            if self._runs(each):
                os.kill(int(each), signal.SIGTERM)
        return True


class DebugBackend:
    """Jobs that run inside Snakemake's own process, each before the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def submit(self, step: JobStep, request: Request, name: str) -> str:
        job = submitit.DebugExecutor(self._folder).submit(step)
        paths = JobPaths(self._folder, job_id=job.job_id, task_id=0)
        with paths.result_pickle.open("wb") as file:
            pickle.dump(("success", job.result()), file)
        return str(job.job_id)

    def statuses(self) -> dict[str, Status] | None:
        return {}

    def find(self, name: str) -> list[str] | None:
        return []

    def cancel(self, job_ids: Iterable[str]) -> bool:
        return True


def _in_one_line(text: str) -> str:
    """Return all that sbatch says."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in text.splitlines()]
    return "; ".join(filter(None, map(str.strip, lines))) or "no message"
