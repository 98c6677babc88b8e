"""Snakemake is killed, and started again: what runs is taken over, nothing is run twice."""

import json
import shutil
import signal
import time
from typing import Any

import pytest

from testbed import toy_workflow
from testbed.toy_workflow import Toy, training_rule
from testbed.waiting import wait_for

MANY = """
rule all:
    input: expand("out/{i}.txt", i=range(8))
rule one:
    output: "out/{i}.txt"
    resources: mem_mb=300, runtime=5
    shell: "echo {wildcards.i} >> ran.txt; until [ -e go{wildcards.i} ]; do sleep 0.1; done;"
        " touch {output}"
"""

SECOND = """
rule second:
    input: "train.txt"
    output: "second.txt"
    resources: mem_mb=300, runtime=5
    shell: "touch {output}"
"""


def killed_while_training(toy, number=signal.SIGKILL, **rule):
    """Start a training, and end Snakemake while it runs; return the job's number."""
    toy.write(training_rule(**rule))
    driver = toy.start()
    job = toy.await_training(1, driver)
    driver.await_that(lambda: any(each["job_id"] for each in toy.records()))
    driver.send_signal(number)
    driver.finish()
    return job


def takes_over(toy, job):
    """Assert that Snakemake, started again, waits for this job and starts no other."""
    driver = toy.start()
    driver.await_that(lambda: f"job {job} " in driver.said())
    toy.let_finish()
    said = driver.succeed()
    assert "taken over from an earlier start" in said
    assert toy.starts() == [(0, job)]
    assert list(toy.jobs()) == [job]
    assert toy.records() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_running_job_is_taken_over(toy, number):
    takes_over(toy, killed_while_training(toy, number))


def test_a_job_whose_number_was_never_noted_is_found_by_its_name(toy):
    job = killed_while_training(toy)
    folder = toy.folder / ".snakemake" / "submitit" / "jobs"
    (path,) = folder.glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "job_id": None}))
    takes_over(toy, job)


def test_a_job_that_ended_meanwhile_is_harvested_and_recorded(toy):
    job = killed_while_training(toy, params="version=1")
    toy.let_finish()
    toy.await_state(job, "COMPLETED")
    toy.succeed()
    assert toy.starts() == [(0, job)] and list(toy.jobs()) == [job]
    assert "Nothing to be done" in toy.succeed()
    # What it was made with is on record as well: other parameters make it again.
    toy.write(training_rule(params="version=2"))
    assert "Params have changed" in toy.succeed("--dry-run")


def test_a_job_that_failed_meanwhile_is_run_again(toy, cluster):
    job = killed_while_training(toy)
    cluster.run("scancel", job)
    toy.await_state(job, "CANCELLED")
    toy.let_finish()
    toy.succeed()
    assert len(toy.starts()) == 2


def test_a_job_whose_parameters_have_changed_is_cancelled_and_begun_anew(toy):
    """Also if SLURM does not hear of it the first time."""
    job = killed_while_training(toy, params="rate=1")
    toy.write(training_rule(steps=1, params="rate=2"))
    (toy.folder / "scancel").write_text(
        f'#!/bin/bash\nif [ -e {toy.folder}/heard ]; then exec /usr/bin/scancel "$@"; fi\n'
        f"touch {toy.folder}/heard; exit 1\n"
    )
    (toy.folder / "scancel").chmod(0o700)
    toy.environment["PATH"] = f"{toy.folder}:{toy.environment['PATH']}"
    (toy.folder / "train.state").unlink()
    toy.succeed()
    assert toy.ended()[job] == "CANCELLED"
    assert len(toy.jobs()) == 2


MANY_INPUTS = """
rule r:
    input: expand("{{i}}.in", i=range(25))
    output: "r.txt"
    params: version={version}
    resources: mem_mb=300, runtime=5
    shell: "echo {{params.version}} >> begun; until [ {{params.version}} = 2 ]; do sleep 0.1; done;"
        " touch {{output}}"
"""


def test_a_job_of_many_inputs_that_is_begun_anew_finds_their_list(toy):
    """Which is too long for a command line, and is not removed with what is kept of the old job."""
    for i in range(25):
        (toy.folder / f"{i}.in").touch()
    toy.write(MANY_INPUTS.format(version=1))
    driver = toy.start()
    driver.await_that((toy.folder / "begun").exists)
    driver.await_that(lambda: any(each["job_id"] for each in toy.records()))
    driver.kill()
    toy.write(MANY_INPUTS.format(version=2))
    toy.succeed()
    assert (toy.folder / "begun").read_text().split() == ["1", "2"]
    assert sorted(toy.ended().values()) == ["CANCELLED", "COMPLETED"]
    assert not list((toy.folder / ".snakemake" / "submitit" / "jobs").glob("*.inputs"))


ALL = ("--rerun-triggers", "mtime", "params", "input", "software-env", "code")

MADE_FROM = """
rule made:
    input: 'in.txt'
    output: 'out.txt'
    params: number={number}
    resources: mem_mb=300, runtime={runtime}
    shell: 'echo {word} $(cat {{input}}) >> begun; until [ -e go ]; do sleep 0.1; done;'
        ' echo {word} $(cat {{input}}) > {{output}}'
"""
GIVEN = {"word": "old", "number": 1, "runtime": 5}


def made_from(toy, text="one", **changes):
    """Write a workflow of one rule that lasts until there is a file `go`."""
    (toy.folder / "in.txt").write_text(text)
    toy.write(MADE_FROM.format(**{**GIVEN, **changes}))


def killed_once_begun(toy, begun=True):
    """Start it, and kill Snakemake once its job has begun; return the job's number."""
    driver = toy.start(*ALL)
    driver.await_that(lambda: any(each["job_id"] for each in toy.records()))
    driver.await_that(lambda: (toy.folder / "begun").exists() if begun else True)
    driver.kill()
    (job,) = toy.jobs()
    return job


CHANGES: dict[str, tuple[Any, ...]] = {
    "code": ({"word": "new"}, (), "code"),
    "input": ({"text": "two"}, (), "mtime"),
    "params": ({"number": 2}, (), "params"),
    "forced": ({}, ("-F",), "told to run it anew"),
    "forced rule": ({}, ("-R", "made"), "told to run it anew"),
    "forced file": ({}, ("-f", "./out.txt"), "told to run it anew"),
}


@pytest.mark.parametrize(
    ("change", "ended"),
    [(each, False) for each in CHANGES] + [("code", True), ("forced", True)],
)
def test_what_would_be_made_otherwise_now_is_not_taken_over(toy, change, ended):
    changes, options, why = CHANGES[change]
    made_from(toy)
    job = killed_once_begun(toy)
    if ended:
        (toy.folder / "go").touch()
        toy.await_state(job, "COMPLETED")
        (toy.folder / "go").unlink()
    made_from(toy, **changes)
    driver = toy.start(*ALL, *options)
    driver.await_that(lambda: len((toy.folder / "begun").read_text().splitlines()) == 2)
    (toy.folder / "go").touch()
    said = driver.succeed()
    (line,) = [each for each in said.splitlines() if f"job {job} " in each]
    assert "is not used: " in line and why in line
    assert toy.ended()[job] == ("COMPLETED" if ended else "CANCELLED") and len(toy.ended()) == 2
    word, text = changes.get("word", "old"), changes.get("text", "one")
    assert (toy.folder / "out.txt").read_text() == f"{word} {text}\n"
    assert "Nothing to be done" in toy.succeed(*ALL)


def test_what_is_the_same_is_taken_over_though_its_parameters_look_otherwise(toy):
    """Sets have another order in each process, and objects another address."""
    names = "class Thing: pass\n{}".format(
        MADE_FROM.replace("number={number}", "names={{*'abcdef'}}, thing=[Thing()]")
    )
    (toy.folder / "in.txt").write_text("one")
    toy.write(names.format(**GIVEN))
    toy.environment["PYTHONHASHSEED"] = "1"
    job = killed_once_begun(toy)
    toy.environment["PYTHONHASHSEED"] = "2"
    (toy.folder / "go").touch()
    assert f"job {job} " in (said := toy.succeed(*ALL)) and "is taken over" in said
    assert list(toy.jobs()) == [job]


def test_what_does_not_have_a_rule_run_again_is_taken_over_and_said(toy):
    made_from(toy)
    job = killed_once_begun(toy)
    made_from(toy, word="new")
    (toy.folder / "go").touch()
    said = toy.succeed()  # with the triggers input and params
    assert "is taken over from an earlier start, though changed since: code" in said
    assert list(toy.jobs()) == [job]


def test_a_job_that_waits_is_submitted_anew_where_its_resources_have_changed(toy, cluster):
    made_from(toy)
    cluster.run("scontrol", "update", "partition=gpu", "state=down")
    try:
        job = killed_once_begun(toy, begun=False)
        made_from(toy, runtime=7)
        driver = toy.start(*ALL)
        driver.await_that(lambda: toy.jobs()[job] == "CANCELLED" and len(toy.jobs()) == 2)
    finally:
        cluster.run("scontrol", "update", "partition=gpu", "state=up")
    (toy.folder / "go").touch()
    assert "waits with other resources than are asked for now" in driver.succeed()
    (other,) = set(toy.jobs()) - {job}
    assert "TimeLimit=00:07:00" in cluster.run("scontrol", "show", "job", other).stdout


def test_a_job_that_runs_keeps_its_resources(toy):
    made_from(toy)
    job = killed_once_begun(toy)
    made_from(toy, runtime=7)
    driver = toy.start(*ALL)
    driver.await_that(
        lambda: "has begun with other resources than are asked for now, and keeps" in driver.said()
    )
    (toy.folder / "go").touch()
    driver.succeed()
    assert list(toy.jobs()) == [job]


def test_a_copy_of_the_directory_takes_over_nothing(toy, cluster, tmp_path):
    made_from(toy)
    job = killed_once_begun(toy)
    shutil.copytree(toy.folder, tmp_path / "copy", symlinks=True)
    with Toy(tmp_path / "copy", cluster) as other:
        (other.folder / "go").touch()
        assert "taken over" not in other.succeed(*ALL)
        assert toy.jobs() == {job: "RUNNING"}


def test_a_job_that_can_never_begin_is_replaced(toy):
    """Killed between sbatch and the file that tells the job what to do."""
    toy.write(training_rule(steps=1, slurm_extra="--begin=now+600"))
    driver = toy.start()
    driver.await_that(lambda: any(each["job_id"] for each in toy.records()))
    driver.kill()
    (job,) = toy.jobs()
    (toy.folder / ".snakemake" / "submitit" / f"{job}_submitted.pkl").unlink()
    toy.write(training_rule(steps=1))
    toy.succeed()
    assert toy.ended()[job] == "CANCELLED" and len(toy.starts()) == 1


def test_of_many_jobs_each_runs_once_though_snakemake_is_killed_twice(toy):
    """First while some are submitted, then when some have ended."""
    toy.write(MANY)
    driver = toy.start()
    driver.await_that(lambda: sum(bool(each["job_id"]) for each in toy.records()) >= 2)
    driver.kill()
    driver = toy.start()
    for number in range(3):
        (toy.folder / f"go{number}").touch()
    driver.await_that(lambda: len(list(toy.folder.glob("out/*.txt"))) == 3)
    driver.kill()
    for number in range(8):
        (toy.folder / f"go{number}").touch()
    toy.succeed()
    assert sorted(map(int, (toy.folder / "ran.txt").read_text().split())) == list(range(8))
    # One that was being submitted when Snakemake was killed may have been replaced: it never began.
    assert list(toy.ended().values()).count("COMPLETED") == 8


def test_a_group_that_runs_is_taken_over(toy):
    toy.write(MANY.replace("range(8)", "range(4)"))
    grouped = ("--groups", "one=small", "--group-components", "small=4")
    driver = toy.start(*grouped)
    (toy.folder / "go0").touch()
    (toy.folder / "go1").touch()
    driver.await_that((toy.folder / "out" / "1.txt").exists)
    driver.kill()
    (toy.folder / "go2").touch()
    (toy.folder / "go3").touch()
    toy.succeed(*grouped)
    assert sorted(map(int, (toy.folder / "ran.txt").read_text().split())) == list(range(4))
    assert len(toy.jobs()) == 1


def test_two_at_once_are_refused_in_one_line(toy):
    toy.write(training_rule())
    driver = toy.start()
    toy.await_training(1, driver)
    said = toy.start().fail()
    (line,) = [each for each in said.splitlines() if each.startswith("Error: submitit: ")]
    assert f"process {driver.process.pid} on " in line and "already runs this workflow" in line
    assert "Traceback" not in said
    toy.let_finish()
    driver.succeed()
    assert len(toy.starts()) == 1


def test_ctrl_c_cancels_and_the_next_start_goes_on(toy):
    toy.write(training_rule())
    driver = toy.start_process()
    job = toy.await_training(1, driver)
    driver.send_signal(signal.SIGINT)
    assert "SIGINT is ignored" not in driver.finish()
    toy.let_finish()
    said = toy.succeed()
    assert toy.ended()[job] == "CANCELLED", said
    (_, first), (step, second) = toy.starts()
    assert first == job != second and step > 0  # it had saved what it had


def test_told_to_stop_again_and_again_within_a_moment_it_cancels_every_job(toy):
    toy.write(
        "rule all:\n    input: expand('{number}.txt', number=range(20))\n"
        "rule r:\n    output: '{number}.txt'\n    resources: mem_mb=50, runtime=10\n"
        "    shell: 'sleep 600; touch {output}'\n"
    )
    driver = toy.start_process()
    driver.await_that(lambda: len(toy.jobs()) == 20)
    for _ in range(4):
        driver.send_signal(signal.SIGINT)
        time.sleep(0.05)
    driver.finish()
    states = toy.ended()
    # A job that was cancelled while it started has failed to SLURM, by signal 9.
    assert len(states) == 20 and set(states.values()) <= {"CANCELLED", "FAILED"}
    assert not list(toy.folder.glob("*.txt"))


OF_OTHERS = {
    "SBATCH_PARTITION": "cancel", "SBATCH_TIMELIMIT": "1", "SBATCH_MEM_PER_NODE": "7",
    "SBATCH_JOB_NAME": "mine", "SQUEUE_STATES": "FAILED", "SQUEUE_FORMAT": "%j", "SQUEUE_SORT": "i",
    "SQUEUE_USERS": "nobody", "SCANCEL_STATE": "PENDING", "SACCT_FORMAT": "jobid",
}  # fmt: skip
"""What people have in their environment for what they do by hand."""


def test_options_of_the_environment_reach_none_of_slurms_programs(toy):
    toy.environment.update(OF_OTHERS)
    toy.write(
        "rule r:\n    output: 'r.txt'\n    resources: mem_mb=300, runtime=7\n"
        "    shell: 'scontrol show job $SLURM_JOB_ID > {output}; sleep 3'\n"
    )
    said = toy.succeed()
    options = "SBATCH_JOB_NAME, SBATCH_MEM_PER_NODE, SBATCH_PARTITION, SBATCH_TIMELIMIT"
    assert f"submitit: {options} of the environment: not used" in said
    shown = (toy.folder / "r.txt").read_text()
    assert "TimeLimit=00:07:00" in shown and "MinMemoryNode=300M" in shown
    assert "Partition=cancel" not in shown and "JobName=r-" in shown
    assert len(toy.jobs()) == 1


def test_workflows_that_share_a_folder_do_not_share_jobs(toy, cluster, tmp_path):
    """As by the profile of a group: rules and files of the same names are others'."""
    rule = (
        "rule r:\n    output: 'r.txt'\n    resources: mem_mb=300, runtime=5\n"
        "    shell: 'until [ -e go ]; do sleep 0.1; done; echo {0} > {{output}}'\n"
    )
    folder = tmp_path / "shared" / "submitit"
    toy.write(rule.format("first"))
    first = toy.start(folder=folder)
    first.await_that(lambda: "RUNNING" in toy.jobs().values())
    first.kill()
    with Toy(tmp_path / "other", cluster) as other:
        other.write(rule.format("second"))
        (other.folder / "go").touch()
        assert "taken over" not in other.succeed(folder=folder)
        assert (other.folder / "r.txt").read_text() == "second\n"
        assert list(toy.jobs().values()) == ["RUNNING"]
        (toy.folder / "go").touch()
        assert "is taken over" in toy.succeed(folder=folder)
    assert (toy.folder / "r.txt").read_text() == "first\n"
    assert len(list(folder.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_one_line(toy):
    toy.write("rule r:\n    output: 'r.txt'\n    shell: 'touch {output}'\n")
    said = toy.start(folder="/proc/submitit").fail()
    assert "submitit: /proc/submitit: " in said and "Traceback" not in said


def test_ctrl_c_leaves_the_jobs_where_it_is_told_to(toy):
    toy.write(training_rule())
    driver = toy.start(on_interrupt="leave")
    job = toy.await_training(1, driver)
    driver.send_signal(signal.SIGINT)
    assert "1 jobs go on" in driver.finish()
    saved = toy.saved()
    wait_for(lambda: toy.saved() > saved)
    assert toy.jobs()[job] == "RUNNING"
    takes_over(toy, job)


def test_jobs_that_nobody_wants_any_more_are_named(toy):
    job = killed_while_training(toy)
    toy.write(training_rule(name="other", steps=1))
    assert f"to cancel them: scancel {job}" in toy.succeed("other.txt")


def test_a_snakemake_with_another_profile_is_not_disturbed(toy):
    toy.write(
        "rule r:\n    output: 'r.txt'\n"
        "    shell: 'until [ -e go ]; do sleep 0.1; done; touch {output}'\n"
    )
    with toy_workflow.launch(
        "snakemake", "--cores", "1", cwd=toy.folder, env=toy.environment
    ) as other:
        locks = toy.folder / ".snakemake" / "locks"
        wait_for(lambda: locks.is_dir() and any(locks.iterdir()))
        said = toy.start().fail()
        assert "another Snakemake works in this directory" in said
        assert "snakemake --unlock" in said
        (toy.folder / "go").touch()
        assert other.wait() == 0


def test_a_job_that_ends_while_snakemake_starts_is_recorded(toy):
    """Its outputs are there and its marks are not yet: Snakemake believes that it is done."""
    toy.write(training_rule(params="version=1") + SECOND)
    driver = toy.start("train.txt")
    job = toy.await_training(1, driver)
    driver.kill()
    toy.let_finish()
    toy.await_state(job, "COMPLETED")
    marks = toy.folder / ".snakemake" / "incomplete"
    (mark,) = marks.iterdir()
    mark.unlink()  # as if Snakemake had looked just before it came back
    toy.succeed("second.txt")
    assert toy.records() == [] and list(marks.iterdir()) == []
    assert len(toy.starts()) == 1
    toy.write(training_rule(params="version=2") + SECOND)
    assert "Params have changed" in toy.succeed("--dry-run", "train.txt")  # it is on record
