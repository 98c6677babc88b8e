"""A training that is stopped, on a real SLURM, by everything that stops one: it goes on."""

import os
import re
import signal
import sys
import time

import psutil
import pytest

from tests.helpers.toy_workflow import Toy, training_rule

pytestmark = pytest.mark.xdist_group("cluster")


@pytest.fixture
def toy(tmp_path, cluster):
    return Toy(tmp_path / "toy", cluster)


def went_on(toy, process, starts, kept=True):
    """Assert that the job succeeded after `starts` starts, each from where the last had saved.

    `starts` is a number, or several that are all right.
    """
    said = toy.finish(process)
    assert process.returncode == 0, said
    begun = [step for step, _ in toy.starts()]
    assert len(begun) in (starts if isinstance(starts, tuple) else (starts,)), (begun, said)
    if kept:
        assert begun == sorted(set(begun)), begun
    assert "Finished jobid" in said
    return said


def take_all_nodes(cluster, seconds=3):
    """Run a job of the partition that goes before all others, on every CPU."""
    cluster.run(
        "sbatch", "--partition=high", "--nodes=2", "--exclusive", "--time=2", "--mem=100",
        "--output=/dev/null", f"--wrap=sleep {seconds}",
    )  # fmt: skip


def test_a_time_limit_shorter_than_the_run_is_met_three_times(toy):
    toy.write(training_rule(steps=900, runtime=1))
    process = toy.start(signal_delay=50, keep_logs="all")
    said = toy.finish(process)
    assert process.returncode == 0, said
    begun = toy.starts()
    assert len(begun) >= 4  # three requeues in a row
    steps = [step for step, _ in begun]
    assert steps == sorted(set(steps))  # each went on where the one before had saved
    (job,) = {job for _, job in begun}  # SLURM's own requeue: one job all along
    log = (toy.folder / ".snakemake" / "submitit" / f"{job}_0_log.out").read_text()
    for step in steps[1:]:
        assert f"trainer saved step {step}\n" in log


def test_preemption_by_a_partition_that_goes_first(toy, cluster):
    toy.write(training_rule(steps=60, slurm_partition="gpu"))
    process = toy.start()
    toy.await_starts(1, process)
    take_all_nodes(cluster)
    said = went_on(toy, process, 2)
    assert "goes on from 'step" in said
    assert len({job for _, job in toy.starts()}) == 1


def test_preemption_with_a_grace_period(toy, cluster):
    toy.write(training_rule(steps=60, slurm_partition="grace"))
    process = toy.start()
    toy.await_starts(1, process)
    take_all_nodes(cluster)
    went_on(toy, process, 2)


def test_preemption_that_cancels_is_submitted_again(toy, cluster):
    toy.write(training_rule(steps=60, slurm_partition="cancel"))
    process = toy.start()
    toy.await_starts(1, process)
    take_all_nodes(cluster)
    said = went_on(toy, process, 2)
    assert "PREEMPTED" in said and "submitted again" in said
    assert len({job for _, job in toy.starts()}) == 2


def test_scontrol_requeue(toy, cluster):
    toy.write(training_rule(steps=60))
    process = toy.start()
    job = toy.await_starts(1, process)
    cluster.run("scontrol", "requeue", job)
    went_on(toy, process, 2)


def in_first_attempt(toy, commands):
    """Return a setting that runs shell commands on the node before the job's first attempt."""
    script = toy.folder / "before.sh"
    script.write_text(f"[ -e {toy.folder}/again ] || {{ touch {toy.folder}/again\n{commands}\n}}\n")
    return f". {script}"


def test_a_signal_before_the_first_line_of_a_job_that_slurm_requeues(toy):
    toy.write(training_rule(steps=20))
    storm = "trap '' USR2 TERM; (while kill -USR2 $$; do sleep 0.002; done) 2>/dev/null &"
    setup = in_first_attempt(toy, f"{storm}\nscontrol requeue $SLURM_JOB_ID")
    process = toy.start(setup=setup, keep_logs="all")
    said = toy.finish(process)
    assert process.returncode == 0, said
    (job,) = {job for _, job in toy.starts()}
    log = (toy.folder / ".snakemake" / "submitit" / f"{job}_0_log.out").read_text()
    assert "Calling checkpoint method" not in log, log  # submitit's own, which fails here


def test_an_error_of_an_attempt_that_slurm_has_requeued_is_not_believed(toy):
    toy.write(training_rule(steps=20))
    result = f"{toy.folder}/.snakemake/submitit/${{SLURM_JOB_ID}}_0_result.pkl"
    write = f"import pickle; pickle.dump(('error', 'broken'), open('{result}', 'wb'))"
    setup = in_first_attempt(
        toy, f'{sys.executable} -c "{write}"\nscontrol requeue $SLURM_JOB_ID; sleep 60'
    )
    process = toy.start(setup=setup)
    went_on(toy, process, 1)


def test_a_node_set_down(toy, cluster):
    toy.write(training_rule(steps=80, slurm_extra="--nodelist=n1"))
    process = toy.start()
    toy.await_starts(1, process)
    time.sleep(1.5)  # a checkpoint, for nothing is saved when a node goes
    cluster.node_down("n1")
    time.sleep(2)
    cluster.node_up("n1")
    # A slow node may end the next start as well, for what is left of the first.
    went_on(toy, process, (2, 3))


def batch_process(job):
    """Return the process that SLURM sees as a job's batch script."""
    for process in psutil.process_iter(["cmdline", "environ"]):
        if "submitit.core._submit" in (process.info["cmdline"] or []):
            if (process.info["environ"] or {}).get("SLURM_JOB_ID") == job:
                return process
    raise AssertionError(f"job {job} has no batch process")


def test_a_batch_step_killed_with_9(toy):
    toy.write(training_rule(steps=60))
    process = toy.start()
    job = toy.await_starts(1, process)
    time.sleep(1)
    batch_process(job).kill()
    said = went_on(toy, process, 2)
    assert "ended without a result: FAILED" in said and "submitted again" in said


def test_a_trainer_that_ignores_the_signal_is_killed_in_time(toy, cluster):
    toy.write(training_rule(steps=120, manner="ignore"))
    process = toy.start(signal_delay=6, keep_logs="all")
    job = toy.await_starts(1, process)
    time.sleep(1)
    cluster.run("scancel", "--batch", "--signal=USR2", job)
    went_on(toy, process, 2)
    log = (toy.folder / ".snakemake" / "submitit" / f"{job}_0_log.out").read_text()
    assert re.search(r"told to save and stop, and have 4 s", log)
    assert re.search(r"did not stop in time: they are killed, to go on from 'step \d+0'", log)


def test_a_command_that_cannot_go_on_is_left_alone_on_the_signal(toy, cluster):
    toy.write(
        "rule plain:\n"
        "    output: 'plain.txt'\n"
        "    resources: mem_mb=300, runtime=5\n"
        "    shell: 'echo $SLURM_JOB_ID > begun; sleep 12; touch {output}'\n"
    )
    process = toy.start(signal_delay=5, keep_logs="all")
    begun = toy.folder / "begun"
    toy.await_that(lambda: begun.exists() and begun.read_text().strip(), process)
    job = begun.read_text().strip()
    cluster.run("scancel", "--batch", "--signal=USR2", job)
    said = toy.finish(process)
    assert process.returncode == 0, said
    log = (toy.folder / ".snakemake" / "submitit" / f"{job}_0_log.out").read_text()
    assert "left to run until the time limit" in log


def test_past_max_requeues_it_fails_and_says_so(toy, cluster):
    toy.write(training_rule(steps=600))
    process = toy.start(max_requeues=1)
    for count in (1, 2):
        job = toy.await_starts(count, process)
        cluster.run("scancel", "--batch", "--signal=USR2", job)
    said = toy.finish(process)
    assert process.returncode != 0
    assert "no requeue is left (submitit-max-requeues: 1)" in said
    assert len(toy.starts()) == 2
    assert toy.records() == []


def test_a_training_that_comes_no_further_is_not_requeued_for_ever(toy, cluster):
    toy.write(training_rule(steps=600, manner="stuck"))
    process = toy.start()
    for count in (1, 2, 3):  # the first one came from nothing to step 0
        job = toy.await_starts(count, process)
        cluster.run("scancel", "--batch", "--signal=USR2", job)
    said = toy.finish(process)
    assert process.returncode != 0
    assert re.search(r"2 attempts in a row ended without progress beyond 'step 0'", said), said
    assert len(toy.starts()) == 3


def test_a_rank_killed_by_the_system_brings_the_job_back(toy):
    """What a command that lost a process does: it asks to be started again, without a signal."""
    toy.write(training_rule(steps=60))
    process = toy.start()
    toy.await_starts(1, process)
    (trainer,) = [
        each for each in psutil.process_iter(["cmdline"])
        if "train.state" in (each.info["cmdline"] or []) and each.cwd() == str(toy.folder)
    ]  # fmt: skip
    os.kill(trainer.pid, signal.SIGUSR2)
    went_on(toy, process, 2)


def test_no_requeue_in_slurm_extra_is_obeyed(toy, cluster):
    toy.write(training_rule(steps=600, slurm_extra="--no-requeue"))
    process = toy.start()
    job = toy.await_starts(1, process)
    shown = cluster.run("scontrol", "show", "job", job).stdout
    assert "Requeue=0" in shown
    cluster.run("scancel", "--batch", "--signal=USR2", job)
    said = toy.finish(process)
    assert process.returncode != 0 and "slurm_extra forbids to requeue it" in said
