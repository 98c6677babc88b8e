"""What becomes of a job that an earlier start of Snakemake has submitted."""

import logging
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from snakemake_executor_plugin_submitit import ExecutorSettings, backends
from snakemake_executor_plugin_submitit.registry import Record, Registry
from snakemake_executor_plugin_submitit.tracking import Outcome, Phase, Tracker

RESULT = {"exit_code": 0, "message": None, "requeues": 0}


@pytest.fixture
def ended(tmp_path):
    """A tracker of the job that makes out.txt, which has ended well since; the job; its output."""
    output = tmp_path / "out.txt"
    own = Record("k", "rule-k", str(Path.cwd()), {str(output): {"code": "1"}}, "r")
    record = replace(own, job_id="7")
    registry = Registry(tmp_path / "jobs")
    registry.write(record)
    (registry.folder / backends.result_name("7")).write_bytes(pickle.dumps(("success", RESULT)))
    tracker = Tracker(
        ExecutorSettings(cluster="local"), registry.folder, registry, logging.getLogger(), {"code"}
    )
    job = tracker.track(own, step=None, request=None, outputs=[str(output)], rule_logs=[])
    tracker.look()
    return tracker, job, output


def test_a_job_that_ended_well_meanwhile_is_done(ended):
    tracker, job, output = ended
    output.touch()
    assert tracker.advance(job) == Outcome()


def test_a_job_whose_output_was_deleted_since_is_run_again(ended):
    tracker, job, _ = ended
    assert tracker.advance(job) is None
    assert job.phase is Phase.CLEAR and not job.taken_over
