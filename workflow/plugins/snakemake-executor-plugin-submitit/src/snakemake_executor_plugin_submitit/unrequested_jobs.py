"""Jobs of earlier Snakemake runs whose outputs this run does not request."""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.logging import LoggerExecutorInterface
from snakemake_interface_executor_plugins.workflow import WorkflowExecutorInterface

from snakemake_executor_plugin_submitit import job_files, shared_folder
from snakemake_executor_plugin_submitit.backends import Backend
from snakemake_executor_plugin_submitit.contents import contents, outputs
from snakemake_executor_plugin_submitit.internals import snakemake as internals
from snakemake_executor_plugin_submitit.registry import Record, Registry
from snakemake_executor_plugin_submitit.slurm import GONE


class UnrequestedJobs:
    """Records the outputs of such jobs that are just ending, and reports those that still run.

    A job may end while Snakemake starts: its command has removed the incomplete markers, so that
    Snakemake takes the outputs as complete, and its step is about to write the markers again. Then
    Snakemake has to record the outputs' provenance, which also removes the markers.
    """

    def __init__(
        self,
        workflow: WorkflowExecutorInterface,
        folder: Path,
        registry: Registry,
        backend: Backend,
        triggers: Collection[str],
        logger: LoggerExecutorInterface,
    ) -> None:
        self._workflow, self._folder, self._registry = workflow, folder, registry
        self._triggers, self._logger = triggers, logger
        self._ending: list[tuple[Record, list[Any]]] = []
        requested = {
            output for job in internals.jobs_to_run(workflow) for output in outputs(job)
        }  # fmt: skip
        records = [record for record in registry.all() if not requested & set(record.contents)]
        if records:
            self._report(self._sort(records, backend), logger)

    @property
    def are_ending(self) -> bool:
        """Whether `record_outputs` has something to wait for."""
        return bool(self._ending)

    def _sort(self, records: list[Record], backend: Backend) -> list[str]:
        """Keep the records of ending jobs; forget others, and return the ids of those active."""
        jobs = {
            output: job for job in internals.all_jobs(self._workflow) for output in outputs(job)
        }
        statuses = backend.statuses()
        active = []
        for record in records:
            job_id = record.job_id
            is_active = job_id and (statuses is None or statuses.get(job_id, GONE).is_active)
            in_dag = set(record.contents) <= set(jobs)
            if in_dag and job_id and (is_active or self._has_result(job_id)):
                self._ending.append((record, [jobs[output] for output in record.contents]))
            elif is_active and job_id and not in_dag:
                active.append(job_id)
            else:
                job_files.forget(self._registry, self._folder, record, self._logger)
        return active

    @staticmethod
    def _report(active: list[str], logger: LoggerExecutorInterface) -> None:
        if active:
            logger.warning(
                f"submitit: {len(active)} jobs of an earlier run of Snakemake are still in the "
                "queue, and this run does not request their outputs; to cancel them: scancel "
                f"{' '.join(active)}"
            )

    async def record_outputs(self) -> None:
        """Record the outputs of jobs that have ended since."""
        for record, jobs in list(self._ending):
            assert record.job_id is not None
            if not self._has_result(record.job_id):
                continue
            if job_files.read_result(self._folder, record.job_id)["exit_code"] == 0:
                for job in jobs:
                    # The marker of an outdated output stays: it is made again.
                    if not record.changes(contents(job, self._workflow), self._triggers):
                        await internals.record_outputs(job, self._workflow)
            job_files.forget(self._registry, self._folder, record, self._logger)
            self._ending.remove((record, jobs))

    def wait(self, seconds: float) -> None:
        """Wait until `record_outputs`, in another thread, has recorded all of them."""
        deadline = time.monotonic() + seconds
        while self._ending and time.monotonic() < deadline:
            time.sleep(0.1)

    def _has_result(self, job_id: str) -> bool:
        return shared_folder.exists(job_files.result_path(self._folder, job_id))
