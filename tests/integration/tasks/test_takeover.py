"""Two trainings of one run: waiting for the lock in a job, and a training that has lost the run."""

import os
import signal
from contextlib import closing, contextmanager

import pytest

from smt.runs.lock import exclusive
from smt.tasks import evaluation
from testbed.waiting import wait_for
from tests.helpers import pause
from tests.helpers.ranks import process_of, start_ranks
from tests.helpers.trainings import (
    RUN_OF_DEMO,
    copy_project,
    exit_codes,
    outcome,
    output_of,
    provenance,
    run_dir,
    smt,
    start,
    work_dir,
)

RUN = RUN_OF_DEMO
OFTEN = ("--checkpoint-steps", "2")


@pytest.fixture
def job(tmp_path):
    """Environment of a job; the file is that in which it requests a requeue of the executor."""
    return {"SLURM_JOB_ID": "7", "SNAKEMAKE_SUBMITIT_RESUME": str(tmp_path / "resume")}


@contextmanager
def paused(project, step, log="first"):
    """A training that stands still after a step, as one whose host is cut off."""
    with start(project, "train", RUN, *OFTEN, log=log, prepare=pause.at_step(step)) as process:
        pause.await_stop(process, lambda: output_of(project, log))
        yield process


def go_on(process):
    process.send_signal(signal.SIGCONT)
    return process.wait()


@contextmanager
def waiting(project, job):
    """A second training, in a job, that waits for the first."""
    with start(project, "train", RUN, env=job, log="second") as process:
        wait_for(
            lambda: "holds this run's lock" in output_of(project, "second"),
            lambda: output_of(project, "second"),
        )
        yield process


def files_of(project):
    """Return every file of a run with its content, but for the heartbeat and the log."""
    return {
        path.relative_to(project): path.read_bytes()
        for path in run_dir(project).rglob("*")
        if path.is_file() and path.name not in ("pulse", "train.log")
    }


def test_a_lock_that_stays_ends_a_job_as_blocked(small_project, undisturbed, job, tmp_path):
    with paused(small_project, 5) as first:
        result = smt(small_project, "train", RUN, "--stall-minutes", "0.01", check=False, env=job)
        assert result.returncode == 75
        line = result.stderr.strip().splitlines()[-1]
        assert f"process {first.pid} on " in line and "holds this run's lock, no heartbeat" in line
        assert (tmp_path / "resume").read_text() == "blocked"
        assert go_on(first) == 0
    assert outcome(small_project) == undisturbed
    assert len(provenance(small_project)["attempts"]) == 1


def test_a_job_that_waits_resumes_the_run_once_the_other_is_killed(small_project, undisturbed, job):
    with paused(small_project, 13) as first, waiting(small_project, job) as second:
        first.kill()
        assert second.wait() == 0, output_of(small_project, "second")
    assert outcome(small_project) == undisturbed
    resumed = [attempt["resumed_at_step"] for attempt in provenance(small_project)["attempts"]]
    assert len(resumed) == 2 and resumed[1] >= 10


def test_a_job_that_waits_is_done_once_the_other_is(small_project, undisturbed, job):
    with paused(small_project, 5) as first, waiting(small_project, job) as second:
        assert go_on(first) == 0
        assert second.wait() == 0, output_of(small_project, "second")
    assert outcome(small_project) == undisturbed
    assert len(provenance(small_project)["attempts"]) == 1


def lose_lock(project):
    """Let the file system forget the lock of the first, as when a lease expires."""
    (work_dir(project) / "lock").unlink()


def test_a_training_that_lost_the_run_ends_without_harm(small_project, undisturbed):
    """It comes back while the other trains."""
    with paused(small_project, 5) as first:
        lose_lock(small_project)
        with paused(small_project, 9, log="second") as second:
            before = files_of(small_project)
            assert go_on(first) == 75
            message = output_of(small_project, "first").strip().splitlines()[-1]
            assert f"process {second.pid} on " in message and "has taken over this run" in message
            assert files_of(small_project) == before
            assert go_on(second) == 0, output_of(small_project, "second")
    assert outcome(small_project) == undisturbed
    attempts = [attempt["resumed_at_step"] for attempt in provenance(small_project)["attempts"]]
    assert len(attempts) == 2 and attempts[1] in (2, 4)


def test_a_training_that_lost_the_run_leaves_its_results_alone(small_project, undisturbed):
    """It comes back when the other is done. Exit code 0: else Snakemake removes the results."""
    with paused(small_project, 5) as first:
        lose_lock(small_project)
        smt(small_project, "train", RUN)
        before = files_of(small_project)
        assert go_on(first) == 0, output_of(small_project, "first")
    assert files_of(small_project) == before
    assert outcome(small_project) == undisturbed


def test_several_processes_that_lost_the_run_end_together(small_project, undisturbed_pair, job):
    """And none of them requests a requeue, which would end the other attempt."""
    arguments = ("train", RUN, *OFTEN)
    with closing(
        start_ranks(small_project, 2, *arguments, log="first", prepare=pause.at_step(5, rank=1))
    ) as first:
        pause.await_stop(process_of(first, 1), first.last_message)
        lose_lock(small_project)
        with closing(start_ranks(small_project, 2, *arguments, log="second")) as second:
            assert exit_codes(second) == [0, 0], second.last_message()
        (run_dir(small_project) / "metrics.json").unlink()  # as if the other were not done
        before = files_of(small_project)
        process_of(first, 1).send_signal(signal.SIGCONT)
        assert exit_codes(first) == [75, 75], first.last_message()
        assert files_of(small_project) == before
        assert "has taken over this run" in first.last_message()
    smt(small_project, "train", RUN, ranks=2)
    assert outcome(small_project) == undisturbed_pair


def test_an_evaluation_in_a_job_waits_for_another_one(trained, tmp_path, job):
    project = copy_project(trained, tmp_path / "done")
    with exclusive(run_dir(project), evaluation.LOCK):
        process = start(project, "evaluate", RUN, env=job, log="evaluation")
        wait_for(
            lambda: f"waits for process {os.getpid()} on" in output_of(project, "evaluation"),
            lambda: output_of(project, "evaluation"),
        )
        assert process.poll() is None
    assert process.wait() == 0, output_of(project, "evaluation")
    assert (run_dir(project) / "evaluation.json").exists()
