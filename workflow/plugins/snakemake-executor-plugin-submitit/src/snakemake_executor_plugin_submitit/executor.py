"""The executor: jobs of Snakemake in, jobs of submitit out, and what became of them."""

import asyncio
import contextlib
import getpass
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import threading
import time
from collections.abc import AsyncGenerator, Collection
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import ApiError, WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.logging import LoggerExecutorInterface
from snakemake_interface_executor_plugins.utils import format_cli_arg, join_cli_args
from snakemake_interface_executor_plugins.workflow import WorkflowExecutorInterface

from snakemake_executor_plugin_submitit import resources
from snakemake_executor_plugin_submitit.contents import contents, made_by, members, triggers
from snakemake_executor_plugin_submitit.internals import snakemake as internals
from snakemake_executor_plugin_submitit.job_step import JobStep
from snakemake_executor_plugin_submitit.registry import Record, Registry
from snakemake_executor_plugin_submitit.settings import ExecutorSettings

_MANY_FILES = 20

_LAST_WORDS = 10.0
"""Seconds that a job which has made its outputs may take to say so."""


class Executor(RemoteExecutor):
    """Runs jobs through submitit."""

    def __init__(self, workflow: WorkflowExecutorInterface, logger: LoggerExecutorInterface):
        # Everything has to be there before the base class starts to poll.
        settings = workflow.executor_settings
        assert isinstance(settings, ExecutorSettings)
        self._settings = settings
        if settings.cluster == "slurm" and not shutil.which("sbatch"):
            raise ApiError(
                "submitit: no sbatch on PATH: start Snakemake where jobs are submitted, or choose "
                "--submitit-cluster local"
            )
        self._folder = _folder(settings.folder)
        self._log = logger
        self._workflow = workflow
        internals.check(workflow)
        own = frozenset(re.split(r"[,\s]+", settings.own_resources or "")) - {""}
        limited = internals.limited_resources(workflow)
        _check_resources(workflow, own | limited)
        self._own = own | (limited & resources.ALIASES)
        self._registry = _open(self._folder, workflow)
        # Imported now: submitit is of no use to the many starts of Snakemake that run no jobs.
        from snakemake_executor_plugin_submitit.internals import submitit
        from snakemake_executor_plugin_submitit.tracking import Tracker

        submitit.check()

        self._triggers = triggers(workflow)
        self._tracker = Tracker(settings, self._folder, self._registry, logger, self._triggers)
        self._wake = threading.Event()
        self._ending: list[tuple[Record, list[Any]]] = []
        self._sort_out_strangers()
        self._tracker.remove_old_logs()
        _tell_of_ignored_interrupt(logger)
        _tell_of_options(logger)
        _heed_one_interrupt()
        super().__init__(workflow, logger)
        self.next_seconds_between_status_checks = settings.poll_interval

    def _sort_out_strangers(self) -> None:
        """Deal with jobs of an earlier start that this one does not ask for.

        One that makes what Snakemake takes to be made has ended just now: its command has removed
        Snakemake's marks, and its step is about to put them back. What its outputs were made with
        is recorded here in a moment. The others are forgotten, or named where they run.
        """
        wanted = {made for job in internals.jobs_to_run(self._workflow) for made in made_by(job)}
        strangers = [each for each in self._registry.all() if not wanted & set(each.contents)]
        if not strangers:
            return
        makers = {made: job for job in internals.all_jobs(self._workflow) for made in made_by(job)}
        ending = [each for each in strangers if set(each.contents) <= set(makers)]
        self._ending = [
            (record, [makers[made] for made in record.contents])
            for record in self._tracker.those_of_use(ending)
        ]
        running = self._tracker.those_that_run(each for each in strangers if each not in ending)
        if running:
            numbers = " ".join(running)
            self._log.warning(
                f"submitit: {len(running)} jobs of an earlier start are still in the queue, and "
                f"this one does not need what they make; to cancel them: scancel {numbers}"
            )

    async def _record_what_ended(self) -> None:
        for record, jobs in list(self._ending):
            succeeded = self._tracker.succeeded(record)
            if succeeded is None:
                continue
            for job in jobs if succeeded else []:
                # Of what was made from something else the mark stays: it is made again.
                if not record.changes(self._contents(job), self._triggers):
                    await internals.record(job, self._workflow)
            self._tracker.forget(record)
            self._ending.remove((record, jobs))

    # --- what Snakemake calls --------------------------------------------------------------------

    def run_job(self, job: JobExecutorInterface) -> None:
        """Take a job over; it is submitted, or found to run already, by the thread that polls."""
        info = SubmittedJobInfo(job)
        try:
            request = resources.request(
                {name: value for name, value in job.resources.items() if name not in self._own},
                self._threads(job), self._settings.default_runtime or 60,
            )  # fmt: skip
            record = self._record(job, request)
            step = self._step(job, record, request)
        except (ValueError, WorkflowError) as error:
            # Anything that is raised here would end all other jobs.
            super().report_job_submission(info, register_job=False)
            self._report_error(info, str(error))
            return
        made, logs = (list(map(str, files)) for files in (job.output, job.log))
        forced = any(internals.is_forced(each, self._workflow) for each in members(job))
        tracked = self._tracker.track(record, step, request, made, logs, forced)
        info.aux = {"tracked": tracked}
        self.report_job_submission(info, register_job=False)
        self._wake.set()

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Submit what is new, look at what runs, report what has ended; yield the rest."""
        self._tracker.look()
        await self._record_what_ended()
        for info in active_jobs:
            if info.aux is None:  # reported already
                continue
            outcome = self._advance(info)
            if outcome is None:
                yield info
            elif outcome.message is None:
                self.report_job_success(info)
            else:
                self._report_error(info, outcome.message, outcome.log)

    def _report_error(self, info: SubmittedJobInfo, message: str, log: Path | None = None) -> None:
        if info.job.is_group():  # Snakemake shows no message of a group
            self._log.error(f"submitit: group {_label(info.job)}: {message}")
        self.report_job_error(info, msg=f"{message}. ", aux_logs=[str(log)] if log else [])

    def _advance(self, info: SubmittedJobInfo) -> Any:
        """Return how a job ended, or None; a disk that fails for a while is no reason to end."""
        assert info.aux is not None
        try:
            outcome = self._tracker.advance(info.aux["tracked"])
            self._register(info)
        except OSError as error:
            self._log.warning(f"submitit: {error}; tried again")
            return None
        return outcome

    def _register(self, info: SubmittedJobInfo) -> None:
        """Have Snakemake mark the outputs as unfinished, once the job has its number."""
        assert info.aux is not None
        job_id = info.aux["tracked"].job_id
        if job_id is not None and info.external_jobid != job_id:
            info.external_jobid = job_id
            info.job.register(external_jobid=job_id)

    async def sleep(self) -> None:
        """Wait until the next look, or until there is something to submit."""
        seconds = self._settings.poll_interval or 0.5
        await asyncio.get_running_loop().run_in_executor(None, self._wake.wait, seconds)
        self._wake.clear()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel everything that this Snakemake has submitted or taken over, or leave it."""
        running = self._tracker.running()
        if self._settings.on_interrupt == "leave":
            self._log.info(f"submitit: {len(running)} jobs go on; start Snakemake again for them")
        elif not self._tracker.cancel():
            numbers = " ".join(running)
            self._log.error(
                f"submitit: SLURM does not answer; to cancel the jobs: scancel {numbers}"
            )

    def shutdown(self) -> None:
        """Stop polling, once what was about to end has."""
        deadline = time.monotonic() + _LAST_WORDS
        while self._ending and time.monotonic() < deadline:
            time.sleep(0.1)
        self._wake.set()
        super().shutdown()

    # --- how a job runs on its node --------------------------------------------------------------

    @property
    def cores(self) -> int:
        """Not used: each job has its own number."""
        return 1

    def _threads(self, job: JobExecutorInterface) -> int:
        return max(int(job.resources.get("_cores", 1)), 1)

    def get_job_args(self, job: JobExecutorInterface, **kwargs: Any) -> str:
        """Return Snakemake's arguments for one job, with its own cores and inputs to wait for."""
        own = RealExecutor.get_job_args(self, job, cores=self._threads(job))
        return str(join_cli_args([own, self._wait_for_files(job)]))

    def _wait_for_files(self, job: JobExecutorInterface) -> str:
        if self._many_inputs(job):
            path = shlex.quote(str(self._registry.inputs(_key(job))))
            return str(format_cli_arg("--wait-for-files-file", path))
        files = [shlex.quote(str(each)) for each in job.get_wait_for_files()]
        return str(format_cli_arg("--wait-for-files", files))

    @staticmethod
    def _many_inputs(job: JobExecutorInterface) -> tuple[str, ...]:
        """Return the files that a job waits for, if a command line would be long with them."""
        files = tuple(str(each) for each in job.get_wait_for_files())
        return files if len(files) > _MANY_FILES else ()

    def get_snakefile(self) -> str:
        """Return the path of the Snakefile, for a shell: Snakemake quotes it as Python would."""
        return shlex.quote(str(super().get_snakefile()))

    def get_envvar_declarations(self) -> str:
        """Return a command that sets the variables of `envvars:`, quoted for a shell as well."""
        declared = " ".join(
            f"{name}={shlex.quote(value)}" for name, value in self.envvars().items()
        )
        return f"export {declared} &&" if declared else ""

    def format_job_exec(self, job: JobExecutorInterface) -> str:
        """Return Snakemake's command line for a job."""
        return internals.start_of_job(str(super().format_job_exec(job)), job, self._workflow)

    def additional_general_args(self) -> str:
        """Return Snakemake's arguments that every job has."""
        return internals.arguments_within_jobs()

    def _record(self, job: JobExecutorInterface, request: resources.Request) -> Record:
        key = _key(job)
        return Record(
            key=key, name=f"{_label(job)}-{key}", directory=str(Path.cwd()),
            contents=self._contents(job), request=request.digest(),
        )  # fmt: skip

    def _contents(self, job: JobExecutorInterface) -> dict[str, dict[str, str]]:
        return contents(job, self._workflow)

    def _step(
        self, job: JobExecutorInterface, record: Record, request: resources.Request
    ) -> JobStep:
        return JobStep(
            command=self.format_job_exec(job),
            folder=self._registry.folder,
            key=record.key,
            # Some of a short job's time has to be left to work in.
            signal_delay=min(float(self._settings.signal_delay or 120), request.minutes * 50.0),
            max_requeues=self._settings.max_requeues or 0,
            max_stalls=self._settings.max_stalls or 1,
            may_requeue=request.may_requeue,
            resumable=all(
                resources.is_resumable(each.resources, self._settings.resumable)
                for each in members(job)
            ),
            inputs=self._many_inputs(job),
            marks=tuple(internals.marks(members(job), self._workflow.persistence)),
        )


def _folder(setting: Path | None) -> Path:
    """Return where the files of this working directory's jobs lie.

    A folder elsewhere may be that of many workflows and users, as by a profile of a group: each
    working directory has a folder of its own in it.

    Raises:
        ApiError: the folder cannot be made.
    """
    here = Path.cwd()
    folder = (here / (setting or ".snakemake/submitit")).absolute()
    unusable = sorted({*"%\\\n"} & {*str(folder)})
    if unusable:
        raise ApiError(
            f"submitit: {str(folder)!r}: SLURM does not take {unusable[0]!r} in the path of a log; "
            "choose another folder (submitit-folder)"
        )
    try:
        if folder.is_relative_to(here):
            folder.mkdir(parents=True, exist_ok=True)
        else:
            if not folder.exists():
                folder.mkdir(parents=True)
                folder.chmod(0o1777)  # other users' folders come beside
            digest = hashlib.sha256(str(here).encode()).hexdigest()[:16]
            name = re.sub(r"[^\w.-]", "_", here.name)
            folder = folder / f"{getpass.getuser()}-{name}-{digest}"
            folder.mkdir(exist_ok=True)
        folder.chmod(0o700)  # pickles in it are run
    except OSError as error:
        raise ApiError(f"submitit: {folder}: {error.strerror} (submitit-folder)") from None
    return folder


def _open(folder: Path, workflow: WorkflowExecutorInterface) -> Registry:
    """Return the registry of a folder that nobody else uses.

    Raises:
        ApiError: another Snakemake runs this workflow, here or on another machine.
    """
    registry = Registry(folder / "jobs")
    try:
        holder = registry.lock()
    except OSError as error:
        raise ApiError(
            f"submitit: {folder}: the file system has no locks ({error.strerror}), without which "
            "two Snakemakes could run the same jobs; choose another submitit-folder, or have it "
            "mounted with locks (flock)"
        ) from None
    if holder:
        raise ApiError(
            f"submitit: {holder} already runs this workflow (it holds {folder}/jobs/driver); wait "
            "for it, or end it: its jobs go on and are taken over"
        )
    if internals.is_locked_by_another(workflow):
        raise ApiError(
            "submitit: another Snakemake works in this directory, with another profile; wait for "
            "it, or if it has crashed: snakemake --unlock"
        )
    return registry


def _tell_of_ignored_interrupt(logger: LoggerExecutorInterface) -> None:
    """Say so where this process has inherited to ignore SIGINT, and what can be sent instead."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        pid = os.getpid()
        logger.warning(
            "submitit: SIGINT is ignored, as in the background of a script or under nohup: Ctrl-C "
            f"and kill -INT do not end this Snakemake; kill -TERM {pid} lets it end when its jobs "
            f"have, kill -KILL {pid} leaves them to the next start"
        )


def _tell_of_options(logger: LoggerExecutorInterface) -> None:
    """Say which options of sbatch in the environment are not used."""
    options = sorted(name for name in os.environ if name.startswith("SBATCH_"))
    if options:
        logger.info(
            f"submitit: {', '.join(options)} of the environment: not used, for it would go before "
            "what rules ask for; put it into default-resources of the profile"
        )


def _heed_one_interrupt() -> None:
    """Let a second Ctrl-C not break off what the first one has begun: cancelling jobs."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):  # not the main thread: then it gets no signals
        signal.signal(signal.SIGINT, interrupt)


def _check_resources(workflow: WorkflowExecutorInterface, known: Collection[str]) -> None:
    """Look through the rules that will run for resources that would have no effect.

    Raises:
        ApiError: naming all of them, and every valid name.
    """
    problems = {
        (job.rule.name, name): instead
        for job in internals.jobs_to_run(workflow)
        for name, instead in resources.without_effect(job.rule.resources, known).items()
    }
    if problems:
        named = ", ".join(
            f"{name} of rule {rule} ({instead})" for (rule, name), instead in problems.items()
        )
        raise ApiError(
            f"submitit: unknown resource {named}; valid: {', '.join(resources.RESOURCES)}; if "
            "it is the workflow's own: --submitit-own-resources NAME,..."
        )


def _key(job: JobExecutorInterface) -> str:
    made = sorted(each for member in members(job) for each in made_by(member))
    where = json.dumps([str(Path.cwd()), made])
    return hashlib.sha256(where.encode()).hexdigest()[:16]


def _label(job: JobExecutorInterface) -> str:
    """Return the beginning of a job's name in SLURM: its rule, or its group."""
    name = job.groupid if job.is_group() else job.rule.name
    return "".join(each if each.isalnum() or each in "_." else "_" for each in str(name))[:40]
