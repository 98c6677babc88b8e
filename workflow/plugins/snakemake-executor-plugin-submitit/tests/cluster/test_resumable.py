"""SIGUSR2 reaches only resumable rules, and in them only processes with a handler."""

import re
import sys

import pytest

from testbed.toy_workflow import message, rule, save_and_stop, training_rule

ROWS = (
    "import time, pathlib\nfor row in range(20):\n    print(row, flush=True)\n    time.sleep(0.1)\n"
)
"""Has no handler: SIGUSR2 would end it."""

HANDLER = """
import os, pathlib, signal, sys, time
received = []
signal.signal(signal.SIGUSR2, lambda number, _: received.append(number))
name = f"{sys.argv[1]}.{os.environ.get('SLURM_PROCID', 0)}"
pathlib.Path(name + ".started").touch()
while not received and not pathlib.Path("go").exists():
    time.sleep(0.05)
pathlib.Path(name + (".signalled" if received else ".finished")).touch()
"""


def job_of(toy, driver):
    driver.await_that(lambda: "RUNNING" in toy.jobs().values())
    (job,) = toy.jobs()
    return job


def test_a_rule_that_is_not_resumable_is_not_signalled(toy, cluster):
    """A command without a handler writes its whole table."""
    (toy.folder / "rows.py").write_text(ROWS)
    toy.write(rule(f"{sys.executable} rows.py > rows; mv rows {{output}}"))
    driver = toy.start_process()
    job = job_of(toy, driver)
    driver.await_that(lambda: (toy.folder / "rows").exists())
    save_and_stop(cluster, job)
    driver.succeed()
    assert len((toy.folder / "r.txt").read_text().splitlines()) == 20
    assert list(toy.jobs()) == [job]


def test_a_rule_that_is_not_resumable_can_use_sigusr2_itself(toy):
    """SIGUSR2 is not inherited as ignored, with which `trap` would have no effect."""
    toy.write(rule("trap 'touch {output}' USR2; kill -USR2 $$; sleep 0.1"))
    toy.succeed()


def test_only_processes_with_a_handler_are_signalled(toy, cluster):
    """A child without a handler, which the signal would end, keeps running."""
    (toy.folder / "handler.py").write_text(HANDLER)
    toy.write(rule(
        "env --default-signal=USR2 sleep 600 & child=$!;"
        f" {sys.executable} handler.py one && kill -0 $child && kill $child && touch {{output}}",
        resumable=True,
    ))  # fmt: skip
    driver = toy.start_process(keep_logs="all")
    job = job_of(toy, driver)
    driver.await_that((toy.folder / "one.0.started").exists)
    save_and_stop(cluster, job)
    driver.succeed()
    assert (toy.folder / "one.0.signalled").exists()
    assert re.search(r" SIGUSR2 to python\S* \(\d+\)$", toy.job_log(job), flags=re.M)


def test_tasks_with_a_handler_are_signalled_on_all_nodes(toy, cluster):
    (toy.folder / "handler.py").write_text(HANDLER)
    (toy.folder / "rank.sh").write_text(
        "if [ $SLURM_PROCID -lt 2 ]; then exec env --default-signal=USR2 sleep 8\n"
        f"else exec {sys.executable} handler.py rank; fi\n"
    )
    toy.write(rule(
        "srun --overlap -n 4 bash rank.sh && touch {output}",
        nodes=2, tasks_per_node=2, resumable=True,
    ))  # fmt: skip
    driver = toy.start_process()
    job = job_of(toy, driver)
    driver.await_that(lambda: all((toy.folder / f"rank.{n}.started").exists() for n in (2, 3)))
    save_and_stop(cluster, job)
    driver.await_that(lambda: all((toy.folder / f"rank.{n}.signalled").exists() for n in (2, 3)))
    driver.succeed()
    assert list(toy.jobs()) == [job]


def test_an_error_after_the_signal_without_progress_is_a_failure(toy, cluster):
    """A bug in the handler does not lead to endless requeues."""
    (toy.folder / "handler.py").write_text(HANDLER)
    toy.write(rule(f"{sys.executable} handler.py one; echo a bug; exit 7", resumable=True))
    driver = toy.start_process()
    job = job_of(toy, driver)
    driver.await_that((toy.folder / "one.0.started").exists)
    save_and_stop(cluster, job)
    line = message(driver.fail())
    assert f"job {job}: FAILED (exit 7)" in line and "a bug" in line
    assert "reported no progress to resume from" in line
    assert toy.final_states() == {job: "FAILED"}


def test_requested_requeues_without_progress_end(toy):
    toy.write(rule("echo >> started; touch $SNAKEMAKE_SUBMITIT_RESUME; exit 1", resumable=True))
    line = message(toy.start(max_stalls=2).fail())
    assert "2 attempts in a row ended without progress" in line
    assert len((toy.folder / "started").read_text().splitlines()) == 2


ABORTS = """
echo >> started
n=$(wc -l < started)
[ $n = 3 ] && touch {output} && exit 0
[ $n = REPORT ] && echo step $n > $SNAKEMAKE_SUBMITIT_PROGRESS
"""
"""In the first two of three attempts, the lines that follow it end the command."""


DIRECTLY, WITHIN = "sh -c 'kill -{} $$'", "sh -c 'kill -{} $$'; echo not here"


@pytest.mark.parametrize(
    ("last", "name"),
    [
        (DIRECTLY, "ABRT"), (WITHIN, "KILL"),
        *(pytest.param(*each, marks=pytest.mark.slow)
          for each in ((DIRECTLY, "KILL"), (DIRECTLY, "BUS"), (WITHIN, "ABRT"), (WITHIN, "BUS"))),
    ],
)  # fmt: skip
def test_a_command_ended_by_a_signal_after_progress_resumes(toy, last, name):
    """NCCL's watchdog aborts the ranks that wait for a lost process."""
    command = ABORTS.replace("[ $n = REPORT ] && ", "")
    toy.write(rule(f"{command}{last.format(name)}", resumable=True))
    toy.start(max_stalls=1).succeed()
    assert len((toy.folder / "started").read_text().splitlines()) == 3
    assert len(toy.final_states()) == 1


def test_a_command_ended_by_a_signal_without_further_progress_fails(toy):
    toy.write(rule(f"{ABORTS.replace('REPORT', '1')}sh -c 'kill -ABRT $$'", resumable=True))
    line = message(toy.start(max_stalls=5).fail())
    assert "exit 134" in line or "Aborted" in line or "SIGABRT" in line
    assert len((toy.folder / "started").read_text().splitlines()) == 2


def test_an_error_exit_after_progress_is_a_failure(toy):
    command = ABORTS.replace("[ $n = REPORT ] && ", "")
    toy.write(rule(f"{command}echo a bug; exit 7", resumable=True))
    line = message(toy.start().fail())
    assert "exit 7" in line and "a bug" in line
    assert len((toy.folder / "started").read_text().splitlines()) == 1


def test_a_rule_that_is_not_resumable_cannot_request_a_requeue(toy):
    toy.write(rule("echo >> started; touch $SNAKEMAKE_SUBMITIT_RESUME; exit 1"))
    toy.fail()
    assert len((toy.folder / "started").read_text().splitlines()) == 1


def test_a_rule_can_override_submitit_resumable(toy, cluster):
    (toy.folder / "handler.py").write_text(HANDLER)
    command = f"{sys.executable} handler.py {{rule}}; touch {{output}}"
    toy.write("rule all:\n    input: 'one.txt', 'two.txt'\n"
              + rule(command, "one") + rule(command, "two", resumable=False))  # fmt: skip
    driver = toy.start_process("--submitit-resumable")
    driver.await_that(lambda: all((toy.folder / f"{n}.0.started").exists() for n in ("one", "two")))
    for job in toy.jobs():
        save_and_stop(cluster, job)
    driver.await_that((toy.folder / "one.0.signalled").exists)
    (toy.folder / "go").touch()
    driver.succeed()
    assert (toy.folder / "two.0.finished").exists()


def test_a_group_is_resumable_if_all_its_rules_are(toy, cluster):
    (toy.folder / "handler.py").write_text(HANDLER)
    command = f"{sys.executable} handler.py {{rule}}; touch {{output}}"
    toy.write("rule all:\n    input: 'one.txt', 'two.txt'\n"
              + rule(command, "one", resumable=True) + rule(command, "two"))  # fmt: skip
    driver = toy.start_process("--groups", "one=g", "two=g", "--group-components", "g=2")
    driver.await_that(lambda: all((toy.folder / f"{n}.0.started").exists() for n in ("one", "two")))
    (job,) = toy.jobs()
    save_and_stop(cluster, job)
    (toy.folder / "go").touch()
    driver.succeed()
    assert (toy.folder / "one.0.finished").exists()


@pytest.mark.parametrize("value", ["maybe", 2])
def test_an_invalid_value_of_resumable_is_an_error(toy, value):
    toy.write(training_rule(resumable=value))
    assert f"resource resumable: {value!r} is neither true nor false" in toy.fail()
    assert toy.jobs() == {}
