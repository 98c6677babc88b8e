"""Trainings on a real SLURM resume after time limits, preemption, requeues and node failures."""

import os
import re
import signal
import sys

import psutil
import pytest

from testbed.toy_workflow import save_and_stop, training_rule


def assert_resumes(toy, driver, name="train"):
    """Assert that the training starts again from its saved step, and then succeeds.

    SLURM may end an attempt while it cleans up the one before, so that there are more than two.
    """
    toy.await_training(2, driver, name)
    toy.let_finish(name)
    output = driver.succeed()
    assert "Finished jobid" in output
    steps = [step for step, _ in toy.starts(name)]
    assert steps[0] == 0 < steps[1] and steps == sorted(steps), steps
    return output


def assert_resumes_once(toy, driver, jobs=1):
    """Assert that the training starts exactly twice, under `jobs` job ids, and succeeds."""
    output = assert_resumes(toy, driver)
    assert len(toy.starts()) == 2, output
    assert len({job for _, job in toy.starts()}) == jobs
    return output


def preempt_all(cluster):
    """Run a job on every CPU, in the partition that preempts the others."""
    cluster.run(
        "sbatch", "--partition=high", "--nodes=2", "--exclusive", "--time=2", "--mem=100",
        "--output=/dev/null", "--wrap=true",
    )  # fmt: skip


# --- time limits ----------------------------------------------------------------------------------


def test_at_the_time_limit_a_resumable_job_is_requeued_and_another_fails(toy):
    """The first is signalled, saves and is requeued; SLURM ends the other at the limit.

    SLURM checks limits every 30 s, and signals jobs up to 30 s earlier.
    """
    plain = (
        "rule plain:\n"
        "    output: 'plain.txt'\n"
        "    resources: mem_mb=300, runtime=1\n"
        "    shell: 'echo started; echo $SLURM_JOB_ID > plain.job; sleep 600'\n"
    )
    toy.write("rule all:\n    input: 'train.txt', 'plain.txt'\n" + plain + training_rule(runtime=1))
    driver = toy.start("--keep-going", signal_delay=10, keep_logs="all")
    job = toy.await_training(2, driver)
    toy.let_finish()
    output = driver.fail()
    (_, first), (step, second) = toy.starts()
    assert first == second == job  # a requeue keeps the job id
    assert f"resumes from step {step}\n" in toy.job_log(job)
    assert (toy.folder / "train.txt").exists()
    other = (toy.folder / "plain.job").read_text().strip()
    assert set(toy.jobs()) == {job, other}
    (line,) = re.findall(rf"^    message: (job {other}: .*)$", output, flags=re.M)
    assert "TIMEOUT" in line and "raise runtime" in line and "started" in line
    assert "SIGUSR2" not in toy.job_log(other)


@pytest.mark.slow
def test_a_training_resumes_after_three_time_limits(toy):
    toy.write(training_rule(runtime=2))
    driver = toy.start(signal_delay=40, keep_logs="all")
    toy.await_training(4, driver)  # three requeues in a row
    toy.let_finish()
    driver.succeed()
    starts = toy.starts()
    steps = [step for step, _ in starts]
    assert steps == sorted(set(steps))  # every attempt resumes where the one before had saved
    (job,) = {job for _, job in starts}  # a requeue keeps the job id
    for step in steps[1:]:
        assert f"resumes from step {step}\n" in toy.job_log(job)


# --- preemption, requeues, failing nodes ----------------------------------------------------------


@pytest.mark.parametrize("partition", ["gpu", "grace"])
def test_a_preempted_job_resumes(toy, cluster, partition):
    toy.write(training_rule(slurm_partition=partition))
    driver = toy.start()
    toy.await_training(1, driver)
    preempt_all(cluster)
    driver.await_that(lambda: "resumes from 'step" in driver.output())
    assert_resumes_once(toy, driver)


def test_a_job_cancelled_by_preemption_is_resubmitted(toy, cluster):
    toy.write(training_rule(slurm_partition="cancel"))
    driver = toy.start()
    toy.await_training(1, driver)
    preempt_all(cluster)
    output = assert_resumes_once(toy, driver, jobs=2)
    assert "PREEMPTED" in output and "resubmitted" in output


def test_repeated_scontrol_requeue(toy, cluster):
    """A node refuses an attempt that begins within the second in which the last one ended."""
    toy.write(training_rule())
    driver = toy.start()
    for count in range(1, 4):
        cluster.run("scontrol", "requeue", toy.await_training(count, driver))
    toy.await_training(4, driver)
    toy.let_finish()
    driver.succeed()
    assert len(toy.starts()) == 4 and len({job for _, job in toy.starts()}) == 1


def in_first_attempt(toy, commands):
    """Return a `setup` that runs shell commands on the node, in the first attempt only."""
    script = toy.folder / "before.sh"
    script.write_text(f"[ -e {toy.folder}/again ] || {{ touch {toy.folder}/again\n{commands}\n}}\n")
    return f". {script}"


def test_a_signal_before_the_job_step_of_a_requeued_job_starts(toy):
    toy.write(training_rule(steps=1))
    signals = "trap '' TERM; (while kill -USR2 $$; do sleep 0.002; done) 2>/dev/null &"
    setup = in_first_attempt(toy, f"{signals}\nscontrol requeue $SLURM_JOB_ID")
    toy.succeed(setup=setup, keep_logs="all")
    (job,) = {job for _, job in toy.starts()}
    log = toy.job_log(job)
    assert "Calling checkpoint method" not in log, log  # submitit's handler, which fails here


def test_a_signal_before_python_starts_does_not_end_a_job(toy):
    """SLURM may signal a job with a limit of one minute in its first second."""
    toy.write(training_rule(steps=1))
    toy.succeed(setup="kill -USR2 $$")
    assert len(toy.starts()) == 1


def test_the_error_of_a_requeued_attempt_is_ignored(toy):
    toy.write(training_rule(steps=1))
    result = f"{toy.folder}/.snakemake/submitit/${{SLURM_JOB_ID}}_0_result.pkl"
    write = f"import pickle; pickle.dump(('error', 'broken'), open('{result}', 'wb'))"
    setup = in_first_attempt(
        toy, f'{sys.executable} -c "{write}"\nscontrol requeue $SLURM_JOB_ID; sleep 60'
    )
    assert "Finished jobid" in toy.succeed(setup=setup)
    assert len(toy.starts()) == 1


def test_a_job_resumes_after_a_node_failure(toy, cluster):
    toy.write(training_rule(slurm_extra="--nodelist=n1"))
    driver = toy.start()
    job = toy.await_training(1, driver)
    cluster.node_down("n1")
    try:
        toy.await_state(job, "PENDING")
    finally:
        cluster.node_up("n1")
    assert_resumes(toy, driver)


def test_a_job_with_a_killed_batch_step_is_resubmitted(toy):
    toy.write(training_rule())
    driver = toy.start()
    job = toy.await_training(1, driver)
    toy.kill_batch(job)
    output = assert_resumes_once(toy, driver, jobs=2)
    assert "ended without a result: FAILED" in output and "resubmitted" in output


def test_a_command_can_request_a_requeue_without_a_signal(toy):
    """As a command does that has lost a process."""
    toy.write(training_rule())
    driver = toy.start()
    toy.await_training(1, driver)
    (trainer,) = [
        process for process in psutil.process_iter(["cmdline", "cwd"])
        if "train.state" in (process.info["cmdline"] or [])
        and process.info["cwd"] == str(toy.folder)
        and process.info["cmdline"][0] == sys.executable
    ]  # fmt: skip
    os.kill(trainer.pid, signal.SIGUSR2)
    assert_resumes_once(toy, driver)


# --- limits of requeues ---------------------------------------------------------------------------


def test_a_trainer_that_ignores_the_signal_is_killed_before_the_time_limit(toy, cluster):
    toy.write(training_rule(mode="ignore"))
    driver = toy.start(signal_delay=6, keep_logs="all")
    job = toy.await_training(1, driver)
    save_and_stop(cluster, job)
    assert_resumes_once(toy, driver)
    log = toy.job_log(job)
    assert re.search(r"its processes have 4 s to save and stop", log)
    assert re.search(r"did not stop in time: killed, to resume from 'step \d+0'", log)


def test_a_job_fails_past_max_requeues(toy, cluster):
    toy.write(training_rule())
    driver = toy.start(max_requeues=1)
    for count in (1, 2):
        save_and_stop(cluster, toy.await_training(count, driver))
    assert "no requeue is left (submitit-max-requeues: 1)" in driver.fail()
    assert len(toy.starts()) == 2
    assert toy.records() == []


def test_a_training_without_progress_fails_after_max_stalls(toy, cluster):
    toy.write(training_rule(mode="stuck"))
    driver = toy.start()
    for count in (1, 2, 3):  # the first attempt saves step 0, which is progress
        save_and_stop(cluster, toy.await_starts(count, driver))
    output = driver.fail()
    assert re.search(r"2 attempts in a row ended without progress beyond 'step 0'", output), output
    assert len(toy.starts()) == 3


def test_no_requeue_in_slurm_extra_has_its_effect(toy, cluster):
    toy.write(training_rule(slurm_extra="--no-requeue"))
    driver = toy.start()
    job = toy.await_training(1, driver)
    assert "Requeue=0" in cluster.run("scontrol", "show", "job", job).stdout
    save_and_stop(cluster, job)
    assert "slurm_extra forbids a requeue" in driver.fail()
