"""The files that submitit writes for each job: its pickled step, its result and its log."""

import pickle
from pathlib import Path
from typing import Any

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
    with result_path(folder, job_id).open("rb") as file:
        kind, value = pickle.load(file)  # safe: only this user can write to the folder
    if kind == "success":
        assert isinstance(value, dict)
        return {**value, "started": True}
    last_line = str(value).strip().splitlines()[-1]
    return {"exit_code": 1, "message": f"the job could not start: {last_line}", "started": False}


def remove_files(folder: Path, job_id: str, keep_log: bool) -> None:
    """Remove the files of a job."""
    paths = JobPaths(folder, job_id=job_id, task_id=0)
    for path in (paths.submitted_pickle, paths.result_pickle, paths.submission_file):
        path.unlink(missing_ok=True)
    if not keep_log:
        paths.stdout.unlink(missing_ok=True)


def forget(registry: Registry, folder: Path, record: Record, keep_log: bool = False) -> None:
    """Remove a job's files and its record."""
    if record.job_id is not None:
        remove_files(folder, record.job_id, keep_log)
    registry.remove(record)
