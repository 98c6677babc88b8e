"""The files that submitit writes for each job: its pickled step, its result and its log."""

import pickle
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.logging import LoggerExecutorInterface

from snakemake_executor_plugin_submitit import shared_folder
from snakemake_executor_plugin_submitit.internals.submitit import JobPaths
from snakemake_executor_plugin_submitit.registry import Record, Registry


def result_name(job_id: str) -> str:
    """Return the name of the file with a job's result."""
    return JobPaths(".", job_id=job_id, task_id=0).result_pickle.name


def result_path(folder: Path, job_id: str) -> Path:
    """Return the file with a job's result."""
    return folder / result_name(job_id)


def log_path(folder: Path, job_id: str) -> Path:
    """Return a job's log, which has all its attempts."""
    return JobPaths(folder, job_id=job_id, task_id=0).stdout


def step_path(folder: Path, job_id: str) -> Path:
    """Return the file with a job's pickled step, which is written after the job is submitted."""
    return JobPaths(folder, job_id=job_id, task_id=0).submitted_pickle


def read_result(folder: Path, job_id: str) -> dict[str, Any]:
    """Return `exit_code` and `message` of a job's step, and whether it `started`."""
    content = shared_folder.read_bytes(result_path(folder, job_id))
    kind, value = pickle.loads(content)  # safe: only this user can write to the folder
    if kind == "success":
        assert isinstance(value, dict)
        return {**value, "started": True}
    last_line = str(value).strip().splitlines()[-1]
    return {"exit_code": 1, "message": f"the job could not start: {last_line}", "started": False}


def remove_files(folder: Path, job_id: str, keep_log: bool) -> list[OSError]:
    """Remove the files of a job, those that exist; return the errors of those that stay."""
    paths = JobPaths(folder, job_id=job_id, task_id=0)
    logs = [] if keep_log else [paths.stdout]
    return shared_folder.remove(
        [paths.submitted_pickle, paths.result_pickle, paths.submission_file, *logs]
    )


def forget(
    registry: Registry,
    folder: Path,
    record: Record,
    logger: LoggerExecutorInterface,
    keep_log: bool = False,
) -> None:
    """Remove a job's files and its record, those that exist; report those that stay.

    Nothing fails for them: the next run of Snakemake finds the record again, and acts on it.
    """
    errors = remove_files(folder, record.job_id, keep_log) if record.job_id is not None else []
    report_leftovers(record, [*errors, *registry.remove(record)], logger)


def report_leftovers(
    record: Record, errors: list[OSError], logger: LoggerExecutorInterface
) -> None:
    """Report in one line that files of a job could not be removed, if there are any."""
    if errors:
        more = f" (and {len(errors) - 1} others)" if len(errors) > 1 else ""
        logger.warning(
            f"submitit: {record.title}: not removed, and not needed any more: {errors[0]}{more}"
        )
