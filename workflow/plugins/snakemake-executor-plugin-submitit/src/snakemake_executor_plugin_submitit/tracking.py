"""Tracks each job from submission to end, through failures of SLURM, nodes and Snakemake."""

import contextlib
import pickle
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.logging import LoggerExecutorInterface

from snakemake_executor_plugin_submitit import diagnosis, job_files, shared_folder, slurm
from snakemake_executor_plugin_submitit.attempts import (
    RESUMABLE_ENDS,
    TERMINATED,
    Attempt,
    requeue_refusal,
)
from snakemake_executor_plugin_submitit.backends import (
    Backend,
    SubmissionRejected,
    SubmissionUnconfirmed,
)
from snakemake_executor_plugin_submitit.job_step import JobStep
from snakemake_executor_plugin_submitit.polling import StatusPoller
from snakemake_executor_plugin_submitit.reattachment import Reattachment
from snakemake_executor_plugin_submitit.registry import Record, Registry
from snakemake_executor_plugin_submitit.resources import Request
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.slurm import Status
from snakemake_executor_plugin_submitit.tracked_job import Outcome, Phase, TrackedJob

INACTIVE_POLLS = 2
"""Polls of SLURM in a row without a job, until a job that has no result is taken as ended."""

SKIP_DELAY_INTERVAL = 5.0
"""Seconds until SLURM is asked again to skip its delay of a requeued job."""

NODE_FAILURES = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "REQUEUED")
"""Final states that are not the job's own fault. It may not have started."""


class Tracker:
    """All jobs of one run of Snakemake."""

    def __init__(
        self,
        settings: ExecutorSettings,
        folder: Path,
        registry: Registry,
        backend: Backend,
        logger: LoggerExecutorInterface,
        triggers: Collection[str],
    ) -> None:
        self._settings, self._folder, self._registry = settings, folder, registry
        self._backend, self._logger = backend, logger
        self._poller = StatusPoller(backend, folder, settings.status_interval or 10.0, logger)
        self._reattachment = Reattachment(folder, registry, backend, self._poller, triggers, logger)
        self._jobs: list[TrackedJob] = []
        self._succeeded: list[TrackedJob] = []
        """Reported, and kept on record until Snakemake has recorded their outputs."""

    def track(
        self,
        record: Record,
        step: JobStep,
        request: Request,
        outputs: list[str],
        rule_logs: list[str],
        forced: bool = False,
    ) -> TrackedJob:
        """Add a job. Nothing is done for it before the next `poll` and `advance`."""
        job = TrackedJob(record, step, request, outputs, rule_logs, forced)
        self._jobs.append(job)
        return job

    def remove_old_logs(self) -> None:
        """Remove logs that are older than `keep_logs_days`, except those of jobs on record."""
        oldest = time.time() - 86_400.0 * (self._settings.keep_logs_days or 0)
        job_ids = {record.job_id for record in self._registry.all()}
        for path in self._folder.glob("*_log.out"):
            with contextlib.suppress(OSError):
                if path.name.partition("_")[0] not in job_ids and path.stat().st_mtime < oldest:
                    path.unlink()

    def submitted(self) -> list[str]:
        """Return the ids of all submitted jobs."""
        return sorted({job.job_id for job in self._jobs if job.job_id is not None})

    def cancel(self) -> bool:
        """Cancel all jobs; return whether SLURM accepted it.

        The records come last: an impatient user may kill this process before they are written.
        """
        accepted = self._backend.cancel(self.submitted())
        for job in self._jobs:
            if job.phase is not Phase.MONITOR and job.first_try is not None:
                accepted &= self._backend.cancel(self._backend.find(job.record.name) or [])
        for job in self._jobs:
            if job.job_id is not None:
                with contextlib.suppress(OSError):  # then the next run may reattach to it
                    self._registry.update(job.record, cancelled=True)
        return accepted

    def close(self) -> None:
        """Forget all jobs that have succeeded: Snakemake is about to end."""
        self._forget(self._succeeded)

    # --- once a cycle, for all jobs ---------------------------------------------------------------

    def poll(self) -> None:
        """Look for results, and poll SLURM if it is time to."""
        again = {job.record.key for job in self._jobs}  # as Snakemake's own checks have failed
        self._forget([
            job for job in self._succeeded
            if job.record.key in again or not job.is_marked_incomplete()
        ])  # fmt: skip
        if not self._jobs:
            return
        self._poller.list_results()
        needs_status = any(
            job.phase in (Phase.MONITOR, Phase.AWAIT_CONFLICTS) or job.needs_status
            for job in self._jobs
        )
        if needs_status and self._poller.poll_slurm():
            self._report_pending()

    def _report_pending(self) -> None:
        """Report jobs that are pending for a reason that does not pass by itself, once each."""
        pending: dict[str, list[Record]] = {}
        for job in self._jobs:
            status = self._poller.status(job.job_id)
            reason = status.reason if status.state == "PENDING" else ""
            if reason != job.pending_reason and not diagnosis.is_transient_reason(reason):
                pending.setdefault(reason, []).append(job.record)
            job.pending_reason = reason
        for reason, records in pending.items():
            self._logger.warning(f"submitit: {diagnosis.explain_pending(reason, records)}")

    # --- each job ---------------------------------------------------------------------------------

    def advance(self, job: TrackedJob) -> Outcome | None:
        """Do the next steps for a job; return how it ended, or None if it has not."""
        if job.phase is Phase.MATCH:
            self._reattachment.match(job)
        if job.phase is Phase.AWAIT_CONFLICTS:
            self._reattachment.await_conflicts(job)
        if job.phase is Phase.SUBMIT:
            return self._submit(job)
        return self._monitor(job) if job.phase is Phase.MONITOR else None

    # --- submission -------------------------------------------------------------------------------

    def _submit(self, job: TrackedJob) -> Outcome | None:
        now = time.monotonic()
        if now < job.next_try:
            return None
        if job.first_try is not None and not self._cancel_unconfirmed(job):
            return self._retry_later(job, "SLURM does not answer")
        job.first_try = job.first_try or now
        job.record = self._registry.write(job.record)
        try:
            job_id = self._backend.submit(job.step, job.request, job.record.name)
        except SubmissionRejected as error:
            self._fail(job)
            return Outcome(f"rejected by sbatch: {error}")
        except SubmissionUnconfirmed as error:
            return self._retry_later(job, str(error))
        job.record = self._registry.update(job.record, job_id=job_id)
        job.first_try, job.next_try, job.retry_delay = None, 0.0, 1.0
        job.enter(Phase.MONITOR)
        return None

    def _cancel_unconfirmed(self, job: TrackedJob) -> bool:
        """Cancel jobs that a failed sbatch may have submitted; return whether SLURM accepted it.

        Such a job cannot start: its pickled step is written only once its id is known.
        """
        job_ids = self._backend.find(job.record.name)
        return job_ids is not None and self._backend.cancel(job_ids)

    def _retry_later(self, job: TrackedJob, error: str) -> Outcome | None:
        assert job.first_try is not None
        elapsed = time.monotonic() - job.first_try
        if elapsed > (self._settings.submit_timeout or 0):
            self._fail(job)
            return Outcome(
                f"not submitted within {elapsed:.0f} s (submitit-submit-timeout): {error}"
            )
        if job.retry_delay == 1.0:
            self._logger.warning(
                f"submitit: submission of {job.record.name} failed, to be retried: {error}"
            )
        job.retry_delay = min(job.retry_delay * 2, 30.0)
        job.next_try = time.monotonic() + job.retry_delay
        return None

    # --- submitted jobs ---------------------------------------------------------------------------

    def _monitor(self, job: TrackedJob) -> Outcome | None:
        assert job.record.job_id is not None
        result = self._read_result(job.record.job_id)
        if result is not None:
            if result["started"]:
                return self._finish_with_result(job, result)
            self._poller.poll_soon()  # SLURM may be about to requeue it
        if not job.accept_poll(self._poller.poll_time):
            return None
        status = self._poller.status(job.record.job_id)
        if status.is_active:
            if result is not None and status.state == "PENDING":
                shared_folder.remove([job_files.result_path(self._folder, job.record.job_id)])
            job.inactive_polls, job.reattached = 0, False
            self._update_attempts(job, status)
            return None
        job.inactive_polls += 1
        self._poller.poll_soon()
        if job.inactive_polls < INACTIVE_POLLS:
            return None
        return self._handle_end_without_result(job, status, result)

    def _read_result(self, job_id: str) -> dict[str, Any] | None:
        if not self._poller.has_result(job_id):
            return None
        try:
            return job_files.read_result(self._folder, job_id)
        except (EOFError, pickle.UnpicklingError, FileNotFoundError):
            return None  # a network file system shows it only in part, or it was just removed

    def _update_attempts(self, job: TrackedJob, status: Status) -> None:
        """Report a new attempt at an active job, and skip SLURM's delay after a requeue."""
        assert job.record.job_id is not None
        if status.state == "PENDING" and status.reason != "BeginTime":
            return  # no attempt begins now: the folder need not be listed
        attempts = self._registry.attempts(job.record).read()
        now = time.monotonic()
        if (
            status.state == "PENDING" and status.reason == "BeginTime" and attempts
            and now >= job.delay_skipped + SKIP_DELAY_INTERVAL
        ):  # fmt: skip
            job.delay_skipped = now
            slurm.skip_requeue_delay(job.record.job_id)
        if len(attempts) > max(job.attempts, 1):
            progress = self._registry.attempts(job.record).progress()
            verb = f"resumes from {progress!r}" if progress else "restarts"
            self._logger.info(
                f"submitit: {job.record.title} {verb}: attempt {len(attempts)}, the one before "
                f"{attempts[-2].end}"
            )
        job.attempts = len(attempts)

    def _finish_with_result(self, job: TrackedJob, result: dict[str, Any]) -> Outcome:
        log = self._log_path(job)
        if result["exit_code"] == 0:
            self._stop_tracking(job)
            self._succeeded.append(job)
            return Outcome()
        message = self._explain(job, diagnosis.result_status(result, log), result["message"])
        self._fail(job)
        return Outcome(message, log)

    def _handle_end_without_result(
        self, job: TrackedJob, squeue: Status, result: dict[str, Any] | None
    ) -> Outcome | None:
        """Resubmit or fail a job that ended without a result, or with one of a failed start."""
        job_id = job.record.job_id
        assert job_id is not None
        log = self._log_path(job)
        if job.reattached:  # it failed while no Snakemake ran: this run starts it afresh
            self._remove(job.record, keep_log=True)
            job.record, job.reattached = job.new_record, False
            job.enter(Phase.SUBMIT)
            return None
        status = diagnosis.final_status(job_id, squeue, log)
        if status is None:
            return None
        if result is not None and status.state not in NODE_FAILURES:
            return self._finish_with_result(job, result)
        failure = self._failure(job, status, log)
        if failure is None:
            self._resubmit(job, status)
            return None
        self._fail(job)
        return Outcome(failure, log if shared_folder.exists(log) else None)

    def _failure(self, job: TrackedJob, status: Status, log: Path) -> str | None:
        """Return why a job that ended without a result has failed, or None to resubmit it."""
        job_id, attempts = job.record.job_id, self._registry.attempts(job.record)
        assert job_id is not None
        past, progress = attempts.read(), attempts.progress()
        if status.state in ("CANCELLED", "OUT_OF_MEMORY", "DEADLINE"):
            return self._explain(job, status)
        if status.state not in NODE_FAILURES:
            if not diagnosis.has_started(past, job_id):
                if not shared_folder.exists(log):
                    return diagnosis.folder_not_visible(job_id, log)
                return self._explain(job, status, "the job step did not start")
            # A node may refuse an attempt right after a requeue.
            launch_refused = status.state == "FAILED" and past[-1].end == TERMINATED
            if not launch_refused and not self._may_resume(job, past, progress):
                return self._explain(job, status)
        refusal = requeue_refusal(past, progress, job.step.max_requeues, job.step.max_stalls)
        if refusal is None and job.record.resubmissions >= job.step.max_requeues:
            refusal = "no requeue is left (submitit-max-requeues)"
        if refusal is None and not job.request.may_requeue:
            refusal = "slurm_extra forbids a requeue"
        return self._explain(job, status, refusal) if refusal else None

    @staticmethod
    def _may_resume(job: TrackedJob, past: list[Attempt], progress: str | None) -> bool:
        """Return whether a job that ended without a node failure can resume."""
        if not job.step.resumable:
            return False
        return progress is not None or bool(past and past[-1].end in RESUMABLE_ENDS)

    def _explain(self, job: TrackedJob, status: Status, message: str | None = None) -> str:
        assert job.record.job_id is not None
        log = self._log_path(job)
        return diagnosis.explain_failure(job.record.job_id, status, log, message, job.rule_logs)

    def _log_path(self, job: TrackedJob) -> Path:
        return job_files.log_path(self._folder, str(job.record.job_id))

    def _resubmit(self, job: TrackedJob, status: Status) -> None:
        assert job.record.job_id is not None
        reason = f" ({status.reason})" if status.reason else ""
        self._logger.warning(
            f"submitit: {job.record.title} ended without a result: "
            f"{status.state}{reason}; resubmitted"
        )
        errors = job_files.remove_files(self._folder, job.record.job_id, keep_log=True)
        job_files.report_leftovers(job.record, errors, self._logger)
        job.record = self._registry.update(
            job.record, job_id=None, resubmissions=job.record.resubmissions + 1
        )
        job.enter(Phase.SUBMIT)

    def _stop_tracking(self, job: TrackedJob) -> None:
        """Stop tracking a job, whose end is reported next: Snakemake then looks for its outputs."""
        self._jobs.remove(job)
        shared_folder.refresh(*job.outputs, *job.rule_logs)

    def _fail(self, job: TrackedJob) -> None:
        self._stop_tracking(job)
        self._remove(job.record, keep_log=True)

    def _forget(self, jobs: list[TrackedJob]) -> None:
        """Remove the records and files of jobs that have succeeded."""
        for job in list(jobs):
            self._succeeded.remove(job)
            self._remove(job.record, keep_log=self._settings.keep_logs == "all")

    def _remove(self, record: Record, keep_log: bool) -> None:
        job_files.forget(self._registry, self._folder, record, self._logger, keep_log)
