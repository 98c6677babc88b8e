"""The executor plugin without SLURM: jobs in local processes, or in Snakemake's own process."""

import signal
import subprocess

import pytest

from snakemake_executor_plugin_submitit import resources
from snakemake_executor_plugin_submitit.backends import DebugBackend
from snakemake_executor_plugin_submitit.job_step import JobStep
from testbed.toy_workflow import Toy, rule, training_rule

JOB = """
rule r:
    output: '{i}.txt'
    resources: mem_mb=300, runtime=5, download_slots=1, gpu=1
    run:
        import gc
        with open(output[0], 'w') as file:
            print(gc.isenabled(), gc.get_freeze_count() > 10000, file=file)
"""
FAILURE = "rule r:\n    output: 'r.txt'\n    resources: mem_mb=300\n    shell: 'echo so; exit 3'\n"


@pytest.fixture
def toy(tmp_path):
    with Toy(tmp_path / "toy") as toy:
        yield toy


@pytest.mark.parametrize("place", ["local", "debug"])
def test_jobs_run_without_slurm(toy, place):
    """Garbage collection is off during the imports of a job, and on while its rule runs.

    The workflow's own resources are accepted if they have a limit, even if a name looks misspelt.
    """
    toy.write("rule all:\n    input: expand('{i}.txt', i=range(2))\n" + JOB)
    toy.succeed("--resources", "download_slots=2", "gpu=4", cluster=place)
    assert [(toy.folder / f"{i}.txt").read_text() for i in range(2)] == ["True True\n"] * 2


def test_jobs_inside_snakemakes_process_have_ids_of_their_own(tmp_path):
    backend = DebugBackend(tmp_path)
    request = resources.request({}, 1, 5)
    ids = {
        backend.submit(JobStep("true", tmp_path, f"key{n}", 120, 50, 2, True), request, "r")
        for n in range(5)
    }
    assert len(ids) == 5


def test_a_job_inside_snakemakes_process_leaves_its_signals_and_other_children_alone(tmp_path):
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with subprocess.Popen(["sleep", "600"]) as other:
        step = JobStep("true", tmp_path, "key", 120, 50, 2, True)
        DebugBackend(tmp_path).submit(step, resources.request({}, 1, 5), "r")
        assert other.poll() is None
        other.kill()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked


@pytest.mark.parametrize("place", ["local", "debug"])
def test_a_failure_without_slurm_is_explained(toy, place):
    toy.write(FAILURE)
    assert "FAILED (exit " in toy.fail(cluster=place)


def test_an_attempt_that_is_blocked_does_not_count_as_one_without_progress(toy):
    """Another process holds what the command needs, three times; then it is free."""
    toy.write(
        rule(
            "echo >> started; [ $(wc -l < started) = 4 ] && touch {output} && exit 0; "
            "echo blocked > $SNAKEMAKE_SUBMITIT_RESUME; exit 75",
            resumable=True,
        )
    )
    toy.start(cluster="local", max_stalls=1).succeed()
    assert len((toy.folder / "started").read_text().splitlines()) == 4


def test_an_invalid_setting_is_an_error(toy):
    toy.write(FAILURE)
    output = toy.start(signal_delay=1).fail()
    assert "submitit-signal-delay: 1 is too small; valid: 5 or more" in output


def test_a_local_job_is_reattached(toy):
    toy.write(training_rule())
    driver = toy.start(cluster="local")
    toy.await_training(1, driver)
    driver.kill()
    driver = toy.start(cluster="local")
    driver.await_that(lambda: "reattached, from an earlier run" in driver.output())
    toy.let_finish()
    driver.succeed()
    assert len(toy.starts()) == 1


# --- errors of the file system --------------------------------------------------------------------

PROGRESS_IS_A_FOLDER = """
rule last:
    input: 'first.txt'
    output: 'last.txt'
    shell: 'touch {output}'

rule first:
    output: 'first.txt'
    shell: 'mkdir $SNAKEMAKE_SUBMITIT_RESUME && touch {output}'
"""


def test_a_file_that_cannot_be_removed_after_a_job_does_not_end_the_others(toy):
    toy.write(PROGRESS_IS_A_FOLDER)
    output = toy.succeed(cluster="local")
    assert output.count("not removed, and not needed any more") == 1
    assert (toy.folder / "last.txt").exists()


def test_a_result_that_cannot_be_read_for_a_while_only_delays(toy):
    toy.write(training_rule())
    driver = toy.start(cluster="local")
    toy.await_training(1, driver)
    (record,) = toy.records()
    result = toy.folder / ".snakemake" / "submitit" / f"{record['job_id']}_0_result.pkl"
    result.symlink_to("/proc/self/mem")
    driver.await_that(lambda: "Input/output error; retrying" in driver.output())
    result.unlink()
    toy.let_finish()
    assert driver.succeed().count("Input/output error") == 1


def test_with_nothing_to_do_it_ends_silently(toy):
    toy.write("rule all:\n    output: 'all.txt'\n    shell: 'touch {output}'\n")
    toy.succeed(cluster="local")
    driver = toy.start_process(cluster="local")
    output = driver.succeed()
    assert "Nothing to be done" in output and "shutdown" not in output
