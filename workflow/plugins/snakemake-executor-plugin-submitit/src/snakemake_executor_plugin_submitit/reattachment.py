"""Reattaching to jobs that an earlier run of Snakemake has submitted, or cancelling them."""

from collections.abc import Collection
from pathlib import Path

from snakemake_interface_executor_plugins.logging import LoggerExecutorInterface

from snakemake_executor_plugin_submitit import job_files, shared_folder
from snakemake_executor_plugin_submitit.backends import Backend
from snakemake_executor_plugin_submitit.polling import StatusPoller
from snakemake_executor_plugin_submitit.registry import Record, Registry
from snakemake_executor_plugin_submitit.tracked_job import Phase, TrackedJob


class Reattachment:
    """Decides which earlier job, if any, is used for a job of this run."""

    def __init__(
        self,
        folder: Path,
        registry: Registry,
        backend: Backend,
        poller: StatusPoller,
        triggers: Collection[str],
        logger: LoggerExecutorInterface,
    ) -> None:
        self._folder, self._registry, self._backend = folder, registry, backend
        self._poller, self._triggers, self._logger = poller, triggers, logger

    def match(self, job: TrackedJob) -> None:
        """Reattach to an earlier job with the same outputs, or cancel those that conflict."""
        overlapping = self._registry.overlapping(job.record.contents)
        if not overlapping:
            job.enter(Phase.SUBMIT)
            return
        with_ids = [self._with_job_id(record) for record in overlapping]
        records = [record for record in with_ids if record is not None]
        if len(records) < len(overlapping):  # SLURM does not answer
            return
        if len(records) == 1 and self._makes_outputs(records[0], job):
            (record,) = records
            reason = self._outdated_reason(record, job)
            if reason is not None:
                self._logger.warning(
                    f"submitit: {record.title} of an earlier run of Snakemake is not used: {reason}"
                )
            elif record.request == job.new_record.request:
                self._reattach(job, record)
                return
            elif self._poller.poll_time <= job.phase_start:
                job.needs_status = True
                self._poller.poll_soon(0.0)
                return
            elif not self._needs_other_resources(record):
                self._reattach(job, record)
                return
        job.conflicts = records
        job.enter(Phase.AWAIT_CONFLICTS)
        self._backend.cancel(record.job_id for record in records if record.job_id)
        self._poller.poll_soon(0.0)

    def _with_job_id(self, record: Record) -> Record | None:
        """Return a record with its job id, looked up by name; None if SLURM does not answer."""
        if record.job_id is not None:
            return record
        job_ids = self._backend.find(record.name)
        if job_ids is None:
            return None
        if not job_ids:
            return record
        return self._registry.update(record, job_id=max(job_ids, key=int))

    def _makes_outputs(self, record: Record, job: TrackedJob) -> bool:
        """Return whether an earlier job makes, or has made, all outputs of this one."""
        if record.job_id is None or record.cancelled or not record.covers(job.new_record.contents):
            return False
        if self._poller.has_result(record.job_id):
            result = job_files.read_result(self._folder, record.job_id)
            return result["exit_code"] == 0 and all(map(shared_folder.exists, job.outputs))
        # Without this file, which is written after the submission, the job cannot start.
        return shared_folder.exists(job_files.step_path(self._folder, record.job_id))

    def _outdated_reason(self, record: Record, job: TrackedJob) -> str | None:
        """Return why the outputs of an earlier job are outdated, or None if they are not."""
        if job.forced:
            return "this run is forced (-f, -F or -R)"
        changes = record.changes(job.new_record.contents, self._triggers)
        return f"changed since: {', '.join(changes)}" if changes else None

    def _needs_other_resources(self, record: Record) -> bool:
        """Return whether an earlier job with other resources has not started, and report it."""
        status = self._poller.status(record.job_id)
        if status.state == "PENDING" and not self._registry.attempts(record).read():
            self._logger.warning(
                f"submitit: {record.title} of an earlier run of Snakemake is pending with other "
                "resources than those requested now: resubmitted"
            )
            return True
        if status.is_active:
            self._logger.warning(
                f"submitit: {record.title} runs with other resources than those requested now, "
                "and keeps them"
            )
        return False

    def _reattach(self, job: TrackedJob, record: Record) -> None:
        job.record, job.reattached = record, True
        job.attempts = len(self._registry.attempts(record).read())
        job.enter(Phase.MONITOR)
        kinds = list(next(iter(job.new_record.contents.values())))
        changes = record.changes(job.new_record.contents, kinds)
        self._logger.info(
            f"submitit: {record.title}: reattached, from an earlier run of Snakemake"
            + (f"; changed since: {', '.join(changes)} (see --rerun-triggers)" if changes else "")
        )

    def await_conflicts(self, job: TrackedJob) -> None:
        """Begin the submission once no job that conflicts is active."""
        if not job.accept_poll(self._poller.poll_time):
            return
        active = [
            record.job_id for record in job.conflicts
            if record.job_id and self._poller.status(record.job_id).is_active
        ]  # fmt: skip
        if active:
            self._backend.cancel(active)  # the first request may not have reached SLURM
            self._poller.poll_soon()
            return
        for record in job.conflicts:
            job_files.forget(self._registry, self._folder, record, self._logger)
        job.conflicts = []
        job.enter(Phase.SUBMIT)
