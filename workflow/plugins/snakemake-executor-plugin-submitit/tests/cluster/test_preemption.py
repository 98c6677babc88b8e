"""A training that is stopped, on a real SLURM, by everything that stops one: it goes on."""

import os
import re
import signal
import sys

import psutil
import pytest

from testbed.toy_workflow import save_and_stop, training_rule


def goes_on(toy, driver, name="train"):
    """Assert that the job has begun anew, and that it succeeds, from where it had saved.

    It may take more than one start, where SLURM ends one for what is left of the one before.
    """
    toy.await_training(2, driver, name)
    toy.let_finish(name)
    said = driver.succeed()
    assert "Finished jobid" in said
    begun = [step for step, _ in toy.starts(name)]
    assert begun[0] == 0 < begun[1] and begun == sorted(begun), begun
    return said


def went_on_once(toy, driver, jobs=1):
    """Assert the same of a job that is not ended again, and had this many numbers in SLURM."""
    said = goes_on(toy, driver)
    assert len(toy.starts()) == 2, said
    assert len({job for _, job in toy.starts()}) == jobs
    return said


def take_all_nodes(cluster):
    """Run a job of the partition that goes before all others, on every CPU."""
    cluster.run(
        "sbatch", "--partition=high", "--nodes=2", "--exclusive", "--time=2", "--mem=100",
        "--output=/dev/null", "--wrap=true",
    )  # fmt: skip


# --- limits of time -------------------------------------------------------------------------------


def test_a_time_limit_is_met_by_a_training_that_goes_on_and_by_a_command_that_cannot(toy):
    """The first is told to stop, saves and is started again; the other is ended at the limit.

    SLURM looks at limits every half a minute, and tells jobs as much earlier.
    """
    plain = (
        "rule plain:\n"
        "    output: 'plain.txt'\n"
        "    resources: mem_mb=300, runtime=1\n"
        "    shell: 'echo begun; echo $SLURM_JOB_ID > plain.job; sleep 600'\n"
    )
    toy.write("rule all:\n    input: 'train.txt', 'plain.txt'\n" + plain + training_rule(runtime=1))
    driver = toy.start("--keep-going", signal_delay=10, keep_logs="all")
    job = toy.await_training(2, driver)
    toy.let_finish()
    said = driver.fail()
    (_, first), (step, second) = toy.starts()
    assert first == second == job  # SLURM's own requeue
    assert f"it goes on from step {step}\n" in toy.job_log(job)
    assert (toy.folder / "train.txt").exists()
    other = (toy.folder / "plain.job").read_text().strip()
    assert set(toy.jobs()) == {job, other}
    (line,) = re.findall(rf"^    message: (job {other}: .*)$", said, flags=re.M)
    assert "TIMEOUT" in line and "raise runtime" in line and "begun" in line
    assert "SIGUSR2" not in toy.job_log(other)


@pytest.mark.slow
def test_a_time_limit_shorter_than_the_run_is_met_three_times(toy):
    toy.write(training_rule(runtime=2))
    driver = toy.start(signal_delay=40, keep_logs="all")
    toy.await_training(4, driver)  # three requeues in a row
    toy.let_finish()
    driver.succeed()
    begun = toy.starts()
    steps = [step for step, _ in begun]
    assert steps == sorted(set(steps))  # each went on where the one before had saved
    (job,) = {job for _, job in begun}  # SLURM's own requeue: one job all along
    for step in steps[1:]:
        assert f"it goes on from step {step}\n" in toy.job_log(job)


# --- preemption, requeues, failing nodes ----------------------------------------------------------


@pytest.mark.parametrize("partition", ["gpu", "grace"])
def test_preemption_by_a_partition_that_goes_first(toy, cluster, partition):
    toy.write(training_rule(slurm_partition=partition))
    driver = toy.start()
    toy.await_training(1, driver)
    take_all_nodes(cluster)
    assert "goes on from 'step" in went_on_once(toy, driver)


def test_preemption_that_cancels_is_submitted_again(toy, cluster):
    toy.write(training_rule(slurm_partition="cancel"))
    driver = toy.start()
    toy.await_training(1, driver)
    take_all_nodes(cluster)
    said = went_on_once(toy, driver, jobs=2)
    assert "PREEMPTED" in said and "submitted again" in said


def test_scontrol_requeue_at_any_moment_of_a_second(toy, cluster):
    """A node refuses an attempt that begins in the second in which the one before was ended."""
    toy.write(training_rule())
    driver = toy.start()
    for count in range(1, 4):
        cluster.run("scontrol", "requeue", toy.await_training(count, driver))
    toy.await_training(4, driver)
    toy.let_finish()
    driver.succeed()
    assert len(toy.starts()) == 4 and len({job for _, job in toy.starts()}) == 1


def in_first_attempt(toy, commands):
    """Return a setting that runs shell commands on the node before the job's first attempt."""
    script = toy.folder / "before.sh"
    script.write_text(f"[ -e {toy.folder}/again ] || {{ touch {toy.folder}/again\n{commands}\n}}\n")
    return f". {script}"


def test_a_signal_before_the_first_line_of_a_job_that_slurm_requeues(toy):
    toy.write(training_rule(steps=1))
    storm = "trap '' TERM; (while kill -USR2 $$; do sleep 0.002; done) 2>/dev/null &"
    setup = in_first_attempt(toy, f"{storm}\nscontrol requeue $SLURM_JOB_ID")
    toy.succeed(setup=setup, keep_logs="all")
    (job,) = {job for _, job in toy.starts()}
    log = toy.job_log(job)
    assert "Calling checkpoint method" not in log, log  # submitit's own, which fails here


def test_a_signal_before_python_runs_does_not_end_a_job(toy):
    """SLURM may tell a job of a minute of its limit in its first second."""
    toy.write(training_rule(steps=1))
    toy.succeed(setup="kill -USR2 $$")
    assert len(toy.starts()) == 1


def test_an_error_of_an_attempt_that_slurm_has_requeued_is_not_believed(toy):
    toy.write(training_rule(steps=1))
    result = f"{toy.folder}/.snakemake/submitit/${{SLURM_JOB_ID}}_0_result.pkl"
    write = f"import pickle; pickle.dump(('error', 'broken'), open('{result}', 'wb'))"
    setup = in_first_attempt(
        toy, f'{sys.executable} -c "{write}"\nscontrol requeue $SLURM_JOB_ID; sleep 60'
    )
    assert "Finished jobid" in toy.succeed(setup=setup)
    assert len(toy.starts()) == 1


def test_a_node_set_down(toy, cluster):
    toy.write(training_rule(slurm_extra="--nodelist=n1"))
    driver = toy.start()
    job = toy.await_training(1, driver)
    cluster.node_down("n1")
    try:
        toy.await_state(job, "PENDING")
    finally:
        cluster.node_up("n1")
    goes_on(toy, driver)


def test_a_batch_step_killed_with_9(toy):
    toy.write(training_rule())
    driver = toy.start()
    job = toy.await_training(1, driver)
    toy.kill_batch(job)
    said = went_on_once(toy, driver, jobs=2)
    assert "ended without a result: FAILED" in said and "submitted again" in said


def test_a_rank_killed_by_the_system_brings_the_job_back(toy):
    """What a command that lost a process does: it asks to be started again, without a signal."""
    toy.write(training_rule())
    driver = toy.start()
    toy.await_training(1, driver)
    (trainer,) = [
        each for each in psutil.process_iter(["cmdline", "cwd"])
        if "train.state" in (each.info["cmdline"] or []) and each.info["cwd"] == str(toy.folder)
        and each.info["cmdline"][0] == sys.executable
    ]  # fmt: skip
    os.kill(trainer.pid, signal.SIGUSR2)
    went_on_once(toy, driver)


# --- the end of patience --------------------------------------------------------------------------


def test_a_trainer_that_ignores_the_signal_is_killed_in_time(toy, cluster):
    toy.write(training_rule(manner="ignore"))
    driver = toy.start(signal_delay=6, keep_logs="all")
    job = toy.await_training(1, driver)
    save_and_stop(cluster, job)
    went_on_once(toy, driver)
    log = toy.job_log(job)
    assert re.search(r"told to save and stop, and have 4 s", log)
    assert re.search(r"did not stop in time: they are killed, to go on from 'step \d+0'", log)


def test_past_max_requeues_it_fails_and_says_so(toy, cluster):
    toy.write(training_rule())
    driver = toy.start(max_requeues=1)
    for count in (1, 2):
        save_and_stop(cluster, toy.await_training(count, driver))
    assert "no requeue is left (submitit-max-requeues: 1)" in driver.fail()
    assert len(toy.starts()) == 2
    assert toy.records() == []


def test_a_training_that_comes_no_further_is_not_requeued_for_ever(toy, cluster):
    toy.write(training_rule(manner="stuck"))
    driver = toy.start()
    for count in (1, 2, 3):  # the first one came from nothing to step 0
        save_and_stop(cluster, toy.await_starts(count, driver))
    said = driver.fail()
    assert re.search(r"2 attempts in a row ended without progress beyond 'step 0'", said), said
    assert len(toy.starts()) == 3


def test_no_requeue_in_slurm_extra_is_obeyed(toy, cluster):
    toy.write(training_rule(slurm_extra="--no-requeue"))
    driver = toy.start()
    job = toy.await_training(1, driver)
    assert "Requeue=0" in cluster.run("scontrol", "show", "job", job).stdout
    save_and_stop(cluster, job)
    assert "slurm_extra forbids to requeue it" in driver.fail()
