"""Signals go to those that ask for them: rules that are resumable, and in them who listens."""

import re
import sys

import pytest

from testbed.toy_workflow import message, rule, save_and_stop, training_rule

ROWS = (
    "import time, pathlib\nfor row in range(20):\n    print(row, flush=True)\n    time.sleep(0.1)\n"
)
"""Has no handler: SIGUSR2 ends it on the spot."""

LISTENS = """
import os, pathlib, signal, sys, time
told = []
signal.signal(signal.SIGUSR2, lambda number, _: told.append(number))
name = f"{sys.argv[1]}.{os.environ.get('SLURM_PROCID', 0)}"
pathlib.Path(name + ".begun").touch()
while not told and not pathlib.Path("go").exists():
    time.sleep(0.05)
pathlib.Path(name + (".told" if told else ".untold")).touch()
"""


def job_of(toy, driver):
    driver.await_that(lambda: "RUNNING" in toy.jobs().values())
    (job,) = toy.jobs()
    return job


def test_a_rule_that_does_not_ask_is_never_signalled(toy, cluster):
    """What writes a table row by row writes all of them."""
    (toy.folder / "rows.py").write_text(ROWS)
    toy.write(rule(f"{sys.executable} rows.py > rows; mv rows {{output}}"))
    driver = toy.start()
    job = job_of(toy, driver)
    driver.await_that(lambda: (toy.folder / "rows").exists())
    save_and_stop(cluster, job)
    driver.succeed()
    assert len((toy.folder / "r.txt").read_text().splitlines()) == 20
    assert list(toy.jobs()) == [job]


def test_a_handler_of_such_a_rule_hears_what_its_own_processes_send(toy):
    """SIGUSR2 is not ignored from the start, where `trap` would have no effect."""
    toy.write(rule("trap 'touch {output}' USR2; kill -USR2 $$; sleep 0.1"))
    toy.succeed()


def test_in_a_resumable_rule_only_who_listens_is_told(toy, cluster):
    """A child without a handler, whose default is to end, goes on."""
    (toy.folder / "listens.py").write_text(LISTENS)
    toy.write(rule(
        "env --default-signal=USR2 sleep 600 & child=$!;"
        f" {sys.executable} listens.py one && kill -0 $child && kill $child && touch {{output}}",
        resumable=True,
    ))  # fmt: skip
    driver = toy.start(keep_logs="all")
    job = job_of(toy, driver)
    driver.await_that((toy.folder / "one.0.begun").exists)
    save_and_stop(cluster, job)
    driver.succeed()
    assert (toy.folder / "one.0.told").exists()
    assert re.search(r" SIGUSR2 to python\S* \(\d+\)$", toy.job_log(job), flags=re.M)


def test_tasks_of_srun_are_told_on_all_nodes_and_those_that_do_not_listen_are_left_alone(
    toy, cluster
):
    (toy.folder / "listens.py").write_text(LISTENS)
    (toy.folder / "rank.sh").write_text(
        "if [ $SLURM_PROCID -lt 2 ]; then exec env --default-signal=USR2 sleep 8\n"
        f"else exec {sys.executable} listens.py rank; fi\n"
    )
    toy.write(rule(
        "srun --overlap -n 4 bash rank.sh && touch {output}",
        nodes=2, tasks_per_node=2, resumable=True,
    ))  # fmt: skip
    driver = toy.start()
    job = job_of(toy, driver)
    driver.await_that(lambda: all((toy.folder / f"rank.{n}.begun").exists() for n in (2, 3)))
    save_and_stop(cluster, job)
    driver.await_that(lambda: all((toy.folder / f"rank.{n}.told").exists() for n in (2, 3)))
    driver.succeed()
    assert list(toy.jobs()) == [job]


def test_a_fault_after_the_signal_is_a_failure_where_no_progress_was_told(toy, cluster):
    """As of a bug that shows just then: it is not begun again and again."""
    (toy.folder / "listens.py").write_text(LISTENS)
    toy.write(rule(f"{sys.executable} listens.py one; echo a bug; exit 7", resumable=True))
    driver = toy.start()
    job = job_of(toy, driver)
    driver.await_that((toy.folder / "one.0.begun").exists)
    save_and_stop(cluster, job)
    line = message(driver.fail())
    assert f"job {job}: FAILED (exit 7)" in line and "a bug" in line
    assert "never said that it could go on" in line
    assert toy.ended() == {job: "FAILED"}


def test_asking_to_be_started_again_without_progress_ends(toy):
    toy.write(rule("echo >> begun; touch $SNAKEMAKE_SUBMITIT_RESUME; exit 1", resumable=True))
    line = message(toy.start(max_stalls=2).fail())
    assert "2 attempts in a row ended without progress" in line
    assert len((toy.folder / "begun").read_text().splitlines()) == 2


ABORTS = """
echo >> begun
n=$(wc -l < begun)
[ $n = 3 ] && touch {output} && exit 0
[ $n = TOLD ] && echo step $n > $SNAKEMAKE_SUBMITIT_PROGRESS
"""
"""The first two of three attempts come to their ends by what follows."""


@pytest.mark.parametrize("name", ["ABRT", "KILL", "BUS"])
@pytest.mark.parametrize("last", ["sh -c 'kill -{} $$'", "sh -c 'kill -{} $$'; echo not here"])
def test_who_is_ended_by_a_signal_after_progress_goes_on(toy, name, last):
    """NCCL's watchdog does so to whoever waits for a process that is lost."""
    told = ABORTS.replace("[ $n = TOLD ] && ", "")
    toy.write(rule(f"{told}{last.format(name)}", resumable=True))
    toy.start(max_stalls=1).succeed()
    assert len((toy.folder / "begun").read_text().splitlines()) == 3
    assert len(toy.ended()) == 1


def test_who_is_ended_by_a_signal_without_further_progress_fails(toy):
    toy.write(rule(f"{ABORTS.replace('TOLD', '1')}sh -c 'kill -ABRT $$'", resumable=True))
    line = message(toy.start(max_stalls=5).fail())
    assert "exit 134" in line or "Aborted" in line or "SIGABRT" in line
    assert len((toy.folder / "begun").read_text().splitlines()) == 2


def test_a_fault_of_its_own_after_progress_is_a_failure(toy):
    told = ABORTS.replace("[ $n = TOLD ] && ", "")
    toy.write(rule(f"{told}echo a bug; exit 7", resumable=True))
    line = message(toy.start().fail())
    assert "exit 7" in line and "a bug" in line
    assert len((toy.folder / "begun").read_text().splitlines()) == 1


def test_asking_has_no_effect_in_a_rule_that_is_not_resumable(toy):
    toy.write(rule("echo >> begun; touch $SNAKEMAKE_SUBMITIT_RESUME; exit 1"))
    toy.fail()
    assert len((toy.folder / "begun").read_text().splitlines()) == 1


def test_a_whole_workflow_can_be_resumable_and_a_rule_not(toy, cluster):
    (toy.folder / "listens.py").write_text(LISTENS)
    listens = f"{sys.executable} listens.py {{rule}}; touch {{output}}"
    toy.write("rule all:\n    input: 'one.txt', 'two.txt'\n"
              + rule(listens, "one") + rule(listens, "two", resumable=False))  # fmt: skip
    driver = toy.start("--submitit-resumable")
    driver.await_that(lambda: all((toy.folder / f"{n}.0.begun").exists() for n in ("one", "two")))
    for job in toy.jobs():
        save_and_stop(cluster, job)
    driver.await_that((toy.folder / "one.0.told").exists)
    (toy.folder / "go").touch()
    driver.succeed()
    assert (toy.folder / "two.0.untold").exists()


def test_a_group_is_resumable_if_all_its_rules_are(toy, cluster):
    (toy.folder / "listens.py").write_text(LISTENS)
    listens = f"{sys.executable} listens.py {{rule}}; touch {{output}}"
    toy.write("rule all:\n    input: 'one.txt', 'two.txt'\n"
              + rule(listens, "one", resumable=True) + rule(listens, "two"))  # fmt: skip
    driver = toy.start("--groups", "one=g", "two=g", "--group-components", "g=2")
    driver.await_that(lambda: all((toy.folder / f"{n}.0.begun").exists() for n in ("one", "two")))
    (job,) = toy.jobs()
    save_and_stop(cluster, job)
    (toy.folder / "go").touch()
    driver.succeed()
    assert (toy.folder / "one.0.untold").exists()


@pytest.mark.parametrize("value", ["maybe", 2])
def test_a_value_that_says_neither_yes_nor_no_is_named(toy, value):
    toy.write(training_rule(resumable=value))
    assert f"resource resumable: {value!r} is neither true nor false" in toy.fail()
    assert toy.jobs() == {}
