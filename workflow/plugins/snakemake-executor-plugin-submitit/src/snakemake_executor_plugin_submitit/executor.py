"""The executor: submits Snakemake's jobs through submitit, and reports how they end."""

import contextlib
import hashlib
import json
import re
import shlex
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.logging import LoggerExecutorInterface
from snakemake_interface_executor_plugins.utils import format_cli_arg, join_cli_args
from snakemake_interface_executor_plugins.workflow import WorkflowExecutorInterface

from snakemake_executor_plugin_submitit import resources, startup
from snakemake_executor_plugin_submitit.attempts import Attempts
from snakemake_executor_plugin_submitit.contents import contents, members, outputs, triggers
from snakemake_executor_plugin_submitit.internals import snakemake as internals
from snakemake_executor_plugin_submitit.job_step import MAX_INPUT_ARGUMENTS, JobStep
from snakemake_executor_plugin_submitit.registry import Record
from snakemake_executor_plugin_submitit.settings import ExecutorSettings

if TYPE_CHECKING:
    from snakemake_executor_plugin_submitit.tracked_job import Outcome

_ENDING_TIMEOUT = 10.0
"""Seconds that a job may take from its outputs to its result."""


class Executor(RemoteExecutor):
    """Runs jobs through submitit."""

    def __init__(self, workflow: WorkflowExecutorInterface, logger: LoggerExecutorInterface):
        # All of it precedes super().__init__(), which starts to poll.
        settings = workflow.executor_settings
        assert isinstance(settings, ExecutorSettings)
        self._settings, self._workflow, self._logger = settings, workflow, logger
        if settings.cluster == "slurm":
            startup.require_sbatch()
        folder = startup.make_folder(settings.folder)
        internals.check(workflow)
        declared = frozenset(re.split(r"[,\s]+", settings.own_resources or "")) - {""}
        limited = internals.limited_resources(workflow)
        startup.check_resources(workflow, declared | limited)
        self._own_resources = declared | (limited & resources.ALIASES)
        self._registry = startup.open_registry(folder, workflow)
        self._wake = threading.Event()
        self._begin = threading.Event()
        self._errors: set[str] = set()
        self._earlier_errors: set[str] = set()
        self._start_tracking(folder)
        startup.warn_of_ignored_sigint(logger)
        startup.report_ignored_options(logger)
        startup.ignore_second_sigint()
        super().__init__(workflow, logger)
        self.next_seconds_between_status_checks = settings.poll_interval

    def _start_tracking(self, folder: Path) -> None:
        # Imported here: Snakemake often starts without jobs to run, and then needs no submitit.
        from snakemake_executor_plugin_submitit.backends import create_backend
        from snakemake_executor_plugin_submitit.internals import submitit
        from snakemake_executor_plugin_submitit.tracking import Tracker
        from snakemake_executor_plugin_submitit.unrequested_jobs import UnrequestedJobs

        submitit.check()
        backend, kinds = create_backend(self._settings, folder), triggers(self._workflow)
        self._tracker = Tracker(
            self._settings, folder, self._registry, backend, self._logger, kinds
        )
        self._unrequested = UnrequestedJobs(
            self._workflow, folder, self._registry, backend, kinds, self._logger
        )
        self._tracker.remove_old_logs()
        if self._unrequested.are_ending:
            self._begin.set()

    # --- called by Snakemake ----------------------------------------------------------------------

    def run_job(self, job: JobExecutorInterface) -> None:
        """Accept a job; the polling thread submits it, or reattaches to an earlier one."""
        info = SubmittedJobInfo(job)
        try:
            request = self._request(job)
            record = self._record(job, request)
            step = self._step(job, record, request)
        except (ValueError, WorkflowError) as error:
            # An exception here would make Snakemake cancel all jobs.
            super().report_job_submission(info, register_job=False)
            self._report_error(info, str(error))
            return
        files, logs = (list(map(str, paths)) for paths in (job.output, job.log))
        forced = any(internals.is_forced(member, self._workflow) for member in members(job))
        tracked = self._tracker.track(record, step, request, files, logs, forced)
        info.aux = {"tracked": tracked}
        self.report_job_submission(info, register_job=False)
        self._begin.set()
        self._wake.set()

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Submit new jobs, poll, and report jobs that ended; yield the others."""
        self._earlier_errors, self._errors = self._errors, set()
        with self._retrying():
            self._tracker.poll()
        with self._retrying():
            await self._unrequested.record_outputs()
        for info in active_jobs:
            if info.aux is None:  # reported when it was accepted
                continue
            outcome = self._advance(info)
            if outcome is None:
                yield info
            elif outcome.message is None:
                self.report_job_success(info)
            else:
                self._report_error(info, outcome.message, outcome.log)

    def _report_error(self, info: SubmittedJobInfo, message: str, log: Path | None = None) -> None:
        if info.job.is_group():  # Snakemake shows no message for groups
            self._logger.error(f"submitit: group {_label(info.job)}: {message}")
        self.report_job_error(info, msg=f"{message}. ", aux_logs=[str(log)] if log else [])

    def _advance(self, info: SubmittedJobInfo) -> "Outcome | None":
        """Return how a job ended, or None; after an error of the file system, try again."""
        assert info.aux is not None
        outcome: Outcome | None = None
        with self._retrying():
            outcome = self._tracker.advance(info.aux["tracked"])
        with self._retrying():
            self._register(info)
        return outcome

    @contextlib.contextmanager
    def _retrying(self) -> Iterator[None]:
        """Go on after an error of the file system: the next poll tries again.

        An exception would end Snakemake, and a shared folder may be gone for a while. An error that
        lasts is reported once.
        """
        try:
            yield
        except OSError as error:
            if str(error) not in self._earlier_errors | self._errors:
                self._logger.warning(f"submitit: {error}; retrying")
            self._errors.add(str(error))

    def _register(self, info: SubmittedJobInfo) -> None:
        """Let Snakemake mark the outputs as incomplete, once the job has its id."""
        assert info.aux is not None
        job_id = info.aux["tracked"].job_id
        if job_id is not None and info.external_jobid != job_id:
            info.job.register(external_jobid=job_id)
            info.external_jobid = job_id

    async def sleep(self) -> None:
        """Wait until the next poll, or until there is a job to submit.

        The thread itself waits: nothing else runs in its event loop.
        """
        self._wake.wait(self._settings.poll_interval or 0.5)
        self._wake.clear()

    def _wait_thread(self) -> None:
        """Poll from the first job on: with nothing to do, Snakemake ends without `shutdown`."""
        self._begin.wait()
        super()._wait_thread()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel all jobs, or leave them to the next Snakemake (`submitit-on-interrupt`)."""
        job_ids = self._tracker.submitted()
        if self._settings.on_interrupt == "leave":
            self._logger.info(
                f"submitit: {len(job_ids)} jobs keep running; the next Snakemake reattaches to them"
            )
        elif not self._tracker.cancel():
            self._logger.error(
                f"submitit: SLURM does not answer; to cancel the jobs: scancel {' '.join(job_ids)}"
            )

    def shutdown(self) -> None:
        """Stop polling, after jobs that are just ending."""
        self._unrequested.wait(_ENDING_TIMEOUT)
        self._begin.set()
        self._wake.set()
        with contextlib.suppress(OSError):  # of Snakemake's temporary folder, which is not used
            super().shutdown()
        self._tracker.close()

    # --- the command line within a job ------------------------------------------------------------

    @property
    def cores(self) -> int:
        """Not used: `get_job_args` passes each job's own number."""
        return 1

    def _request(self, job: JobExecutorInterface) -> resources.Request:
        given = {
            name: value for name, value in job.resources.items() if name not in self._own_resources
        }
        default_minutes = self._settings.default_runtime or 60
        return resources.request(given, self._threads(job), default_minutes)

    def _threads(self, job: JobExecutorInterface) -> int:
        return max(int(job.resources.get("_cores", 1)), 1)

    def get_job_args(self, job: JobExecutorInterface, **kwargs: Any) -> str:
        """Return Snakemake's arguments for a job: its cores, and the inputs to wait for."""
        arguments = RealExecutor.get_job_args(self, job, cores=self._threads(job))
        return str(join_cli_args([arguments, self._wait_for_files(job)]))

    def _wait_for_files(self, job: JobExecutorInterface) -> str:
        files = [str(file) for file in job.get_wait_for_files()]
        if len(files) > MAX_INPUT_ARGUMENTS:
            path = shlex.quote(str(Attempts(self._registry.folder, _key(job)).input_list))
            return str(format_cli_arg("--wait-for-files-file", path))
        return str(format_cli_arg("--wait-for-files", map(shlex.quote, files)))

    def get_snakefile(self) -> str:
        """Return the path of the Snakefile, quoted for a shell; Snakemake's own is not."""
        return shlex.quote(str(super().get_snakefile()))

    def get_envvar_declarations(self) -> str:
        """Return a command that exports the variables of `envvars:`, quoted for a shell."""
        variables = " ".join(
            f"{name}={shlex.quote(value)}" for name, value in self.envvars().items()
        )
        return f"export {variables} &&" if variables else ""

    def format_job_exec(self, job: JobExecutorInterface) -> str:
        """Return Snakemake's command line for a job."""
        return internals.shell_command(str(super().format_job_exec(job)), job, self._workflow)

    def additional_general_args(self) -> str:
        """Return Snakemake's arguments that are the same for every job."""
        return internals.in_job_arguments()

    def _record(self, job: JobExecutorInterface, request: resources.Request) -> Record:
        key = _key(job)
        return Record(
            key=key, name=f"{_label(job)}-{key}", directory=str(Path.cwd()),
            contents=contents(job, self._workflow), request=request.digest(),
        )  # fmt: skip

    def _step(
        self, job: JobExecutorInterface, record: Record, request: resources.Request
    ) -> JobStep:
        return JobStep(
            command=self.format_job_exec(job),
            folder=self._registry.folder,
            key=record.key,
            # At most 50 s of each minute, so that a short job has time to work.
            signal_delay=min(float(self._settings.signal_delay or 120), request.minutes * 50.0),
            max_requeues=self._settings.max_requeues or 0,
            max_stalls=self._settings.max_stalls or 1,
            may_requeue=request.may_requeue,
            resumable=all(
                resources.is_resumable(member.resources, self._settings.resumable)
                for member in members(job)
            ),
            inputs=tuple(str(file) for file in job.get_wait_for_files()),
            marks=tuple(internals.incomplete_markers(members(job), self._workflow.persistence)),
        )


def _key(job: JobExecutorInterface) -> str:
    """Return a digest of the working directory and the job's outputs."""
    files = sorted(output for member in members(job) for output in outputs(member))
    identity = json.dumps([str(Path.cwd()), files])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _label(job: JobExecutorInterface) -> str:
    """Return the first part of a job's name in SLURM: its rule or group."""
    name = job.groupid if job.is_group() else job.rule.name
    return "".join(char if char.isalnum() or char in "_." else "_" for char in str(name))[:40]
