"""Jobs of an earlier run of Snakemake that ended before this one."""

import logging
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from snakemake_executor_plugin_submitit import ExecutorSettings, job_files
from snakemake_executor_plugin_submitit.backends import create_backend
from snakemake_executor_plugin_submitit.registry import Record, Registry
from snakemake_executor_plugin_submitit.tracked_job import Outcome, Phase
from snakemake_executor_plugin_submitit.tracking import Tracker

RESULT = {"exit_code": 0, "message": None, "requeues": 0}


@pytest.fixture
def succeeded(tmp_path):
    """A tracker, a job that succeeded in an earlier run of Snakemake, and its output file."""
    output = tmp_path / "out.txt"
    new_record = Record("k", "rule-k", str(Path.cwd()), {str(output): {"code": "1"}}, "r")
    record = replace(new_record, job_id="7")
    registry = Registry(tmp_path / "jobs")
    registry.write(record)
    result = job_files.result_path(registry.folder, "7")
    result.write_bytes(pickle.dumps(("success", RESULT)))
    settings = ExecutorSettings(cluster="local")
    backend = create_backend(settings, registry.folder)
    tracker = Tracker(settings, registry.folder, registry, backend, logging.getLogger(), {"code"})
    job = tracker.track(new_record, step=None, request=None, outputs=[str(output)], rule_logs=[])
    tracker.poll()
    return tracker, job, output


def test_a_job_that_has_succeeded_is_done(succeeded):
    tracker, job, output = succeeded
    output.touch()
    assert tracker.advance(job) == Outcome()


def test_a_job_whose_output_is_missing_is_run_again(succeeded):
    tracker, job, _ = succeeded
    assert tracker.advance(job) is None
    assert job.phase is Phase.AWAIT_CONFLICTS and not job.reattached
