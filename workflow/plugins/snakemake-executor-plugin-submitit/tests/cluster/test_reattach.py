"""Snakemake is killed and started again: it reattaches to its jobs, and none runs twice."""

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


def kill_while_training(toy, number=signal.SIGKILL, **rule):
    """Start a training, and end Snakemake while it runs; return the job id."""
    toy.write(training_rule(**rule))
    driver = toy.start()
    job = toy.await_training(1, driver)
    driver.await_that(lambda: any(record["job_id"] for record in toy.records()))
    driver.send_signal(number)
    driver.finish()
    return job


def assert_reattaches(toy, job):
    """Assert that Snakemake, started again, waits for this job and submits no other."""
    driver = toy.start()
    driver.await_that(lambda: f"job {job} " in driver.output())
    toy.let_finish()
    output = driver.succeed()
    assert "reattached, from an earlier run" in output
    assert toy.starts() == [(0, job)]
    assert list(toy.jobs()) == [job]
    assert toy.records() == []


def reattach_and_succeed(toy, *arguments, **settings):
    """Start Snakemake, let the job end once it is reattached, and return the output.

    A job that may end before would leave nothing to do.
    """
    driver = toy.start(*arguments, **settings)
    driver.await_that(lambda: "reattached" in driver.output())
    (toy.folder / "go").touch()
    return driver.succeed()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_running_job_is_reattached(toy, number):
    assert_reattaches(toy, kill_while_training(toy, number))


def test_a_job_without_a_recorded_id_is_looked_up_by_name(toy):
    job = kill_while_training(toy)
    folder = toy.folder / ".snakemake" / "submitit" / "jobs"
    (path,) = folder.glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "job_id": None}))
    assert_reattaches(toy, job)


def test_a_job_that_ended_meanwhile_is_reported_and_recorded(toy):
    job = kill_while_training(toy, params="version=1")
    toy.let_finish()
    toy.await_state(job, "COMPLETED")
    toy.succeed()
    assert toy.starts() == [(0, job)] and list(toy.jobs()) == [job]
    assert "Nothing to be done" in toy.succeed()
    # Snakemake has recorded its parameters: other ones make it again.
    toy.write(training_rule(params="version=2"))
    assert "Params have changed" in toy.succeed("--dry-run")


def test_a_job_that_failed_meanwhile_is_run_again(toy, cluster):
    job = kill_while_training(toy)
    cluster.run("scancel", job)
    toy.await_state(job, "CANCELLED")
    toy.let_finish()
    toy.succeed()
    assert len(toy.starts()) == 2


def test_a_job_with_changed_parameters_is_cancelled_and_resubmitted(toy):
    """Also if the first scancel fails."""
    job = kill_while_training(toy, params="rate=1")
    toy.write(training_rule(steps=1, params="rate=2"))
    (toy.folder / "scancel").write_text(
        f'#!/bin/bash\nif [ -e {toy.folder}/failed ]; then exec /usr/bin/scancel "$@"; fi\n'
        f"touch {toy.folder}/failed; exit 1\n"
    )
    (toy.folder / "scancel").chmod(0o700)
    toy.environment["PATH"] = f"{toy.folder}:{toy.environment['PATH']}"
    (toy.folder / "train.state").unlink()
    toy.succeed()
    assert toy.final_states()[job] == "CANCELLED"
    assert len(toy.jobs()) == 2


MANY_INPUTS = """
rule r:
    input: expand("{{i}}.in", i=range(25))
    output: "r.txt"
    params: version={version}
    resources: mem_mb=300, runtime=5
    shell: "echo {{params.version}} >> started;"
        " until [ {{params.version}} = 2 ]; do sleep 0.1; done; touch {{output}}"
"""


def test_a_resubmitted_job_with_many_inputs_has_their_list(toy):
    """The list is in a file, which is not removed with the files of the old job."""
    for i in range(25):
        (toy.folder / f"{i}.in").touch()
    toy.write(MANY_INPUTS.format(version=1))
    driver = toy.start()
    driver.await_that((toy.folder / "started").exists)
    driver.await_that(lambda: any(record["job_id"] for record in toy.records()))
    driver.kill()
    toy.write(MANY_INPUTS.format(version=2))
    toy.succeed()
    assert (toy.folder / "started").read_text().split() == ["1", "2"]
    assert sorted(toy.final_states().values()) == ["CANCELLED", "COMPLETED"]
    assert not list((toy.folder / ".snakemake" / "submitit" / "jobs").glob("*.inputs"))


ALL = ("--rerun-triggers", "mtime", "params", "input", "software-env", "code")

COPY_RULE = """
rule copy:
    input: 'in.txt'
    output: 'out.txt'
    params: number={number}
    resources: mem_mb=300, runtime={runtime}
    shell: 'echo {word} $(cat {{input}}) >> started; until [ -e go ]; do sleep 0.1; done;'
        ' echo {word} $(cat {{input}}) > {{output}}'
"""
DEFAULTS = {"word": "old", "number": 1, "runtime": 5}


def write_workflow(toy, text="one", **changes):
    """Write a workflow with one rule, which waits for the file `go`."""
    (toy.folder / "in.txt").write_text(text)
    toy.write(COPY_RULE.format(**{**DEFAULTS, **changes}))


def kill_once_started(toy, started=True):
    """Start Snakemake, and kill it once its job has started; return the job id."""
    driver = toy.start(*ALL)
    driver.await_that(lambda: any(record["job_id"] for record in toy.records()))
    driver.await_that(lambda: (toy.folder / "started").exists() if started else True)
    driver.kill()
    (job,) = toy.jobs()
    return job


CHANGES: dict[str, tuple[Any, ...]] = {
    "code": ({"word": "new"}, (), "code"),
    "input": ({"text": "two"}, (), "mtime"),
    "params": ({"number": 2}, (), "params"),
    "forced": ({}, ("-F",), "this run is forced"),
    "forced rule": ({}, ("-R", "copy"), "this run is forced"),
    "forced file": ({}, ("-f", "./out.txt"), "this run is forced"),
}


@pytest.mark.parametrize(
    ("change", "completed"),
    [(change, False) for change in CHANGES] + [("code", True), ("forced", True)],
)
def test_an_outdated_job_is_not_reattached(toy, change, completed):
    changes, options, why = CHANGES[change]
    write_workflow(toy)
    job = kill_once_started(toy)
    if completed:
        (toy.folder / "go").touch()
        toy.await_state(job, "COMPLETED")
        (toy.folder / "go").unlink()
    write_workflow(toy, **changes)
    driver = toy.start(*ALL, *options)
    driver.await_that(lambda: len((toy.folder / "started").read_text().splitlines()) == 2)
    (toy.folder / "go").touch()
    output = driver.succeed()
    (line,) = [line for line in output.splitlines() if f"job {job} " in line]
    assert "is not used: " in line and why in line
    assert (
        toy.final_states()[job] == ("COMPLETED" if completed else "CANCELLED")
        and len(toy.final_states()) == 2
    )
    word, text = changes.get("word", "old"), changes.get("text", "one")
    assert (toy.folder / "out.txt").read_text() == f"{word} {text}\n"
    assert "Nothing to be done" in toy.succeed(*ALL)


def test_equal_parameters_with_another_representation_are_reattached(toy):
    """Sets have another order in each process, and objects another address."""
    names = "class Thing: pass\n{}".format(
        COPY_RULE.replace("number={number}", "names={{*'abcdef'}}, thing=[Thing()]")
    )
    (toy.folder / "in.txt").write_text("one")
    toy.write(names.format(**DEFAULTS))
    toy.environment["PYTHONHASHSEED"] = "1"
    job = kill_once_started(toy)
    toy.environment["PYTHONHASHSEED"] = "2"
    assert f"job {job} " in (output := reattach_and_succeed(toy, *ALL)) and "reattached" in output
    assert list(toy.jobs()) == [job]


def test_changes_that_trigger_no_rerun_are_reattached_and_reported(toy):
    write_workflow(toy)
    job = kill_once_started(toy)
    write_workflow(toy, word="new")
    output = reattach_and_succeed(toy)  # with the triggers input and params
    assert "reattached, from an earlier run of Snakemake; changed since: code" in output
    assert list(toy.jobs()) == [job]


def test_a_pending_job_with_changed_resources_is_resubmitted(toy, cluster):
    write_workflow(toy)
    cluster.run("scontrol", "update", "partition=gpu", "state=down")
    try:
        job = kill_once_started(toy, started=False)
        write_workflow(toy, runtime=7)
        driver = toy.start(*ALL)
        driver.await_that(lambda: toy.jobs()[job] == "CANCELLED" and len(toy.jobs()) == 2)
    finally:
        cluster.run("scontrol", "update", "partition=gpu", "state=up")
    (toy.folder / "go").touch()
    assert "is pending with other resources than those requested now" in driver.succeed()
    (other,) = set(toy.jobs()) - {job}
    assert "TimeLimit=00:07:00" in cluster.run("scontrol", "show", "job", other).stdout


def test_a_running_job_keeps_its_resources(toy):
    write_workflow(toy)
    job = kill_once_started(toy)
    write_workflow(toy, runtime=7)
    driver = toy.start(*ALL)
    driver.await_that(
        lambda: "runs with other resources than those requested now, and keeps" in driver.output()
    )
    (toy.folder / "go").touch()
    driver.succeed()
    assert list(toy.jobs()) == [job]


def test_a_copy_of_the_directory_reattaches_to_no_job(toy, cluster, tmp_path):
    write_workflow(toy)
    job = kill_once_started(toy)
    shutil.copytree(toy.folder, tmp_path / "copy", symlinks=True)
    with Toy(tmp_path / "copy", cluster) as other:
        (other.folder / "go").touch()
        assert "reattached" not in other.succeed(*ALL)
        assert toy.jobs() == {job: "RUNNING"}


def test_a_job_without_its_pickled_step_is_replaced(toy):
    """Snakemake was killed between sbatch and the file with the pickled step."""
    toy.write(training_rule(steps=1, slurm_extra="--begin=now+600"))
    driver = toy.start()
    driver.await_that(lambda: any(record["job_id"] for record in toy.records()))
    driver.kill()
    (job,) = toy.jobs()
    (toy.folder / ".snakemake" / "submitit" / f"{job}_submitted.pkl").unlink()
    toy.write(training_rule(steps=1))
    toy.succeed()
    assert toy.final_states()[job] == "CANCELLED" and len(toy.starts()) == 1


def test_every_job_runs_once_though_snakemake_is_killed_twice(toy):
    """First while it submits jobs, then when some have ended."""
    toy.write(MANY)
    driver = toy.start()
    driver.await_that(lambda: sum(bool(record["job_id"]) for record in toy.records()) >= 2)
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
    # A job that was just being submitted may have been replaced: it could not start.
    assert list(toy.final_states().values()).count("COMPLETED") == 8


def test_a_running_group_is_reattached(toy):
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


def test_a_second_snakemake_is_refused(toy):
    toy.write(training_rule())
    driver = toy.start()
    toy.await_training(1, driver)
    output = toy.start().fail()
    (line,) = [line for line in output.splitlines() if line.startswith("Error: submitit: ")]
    assert f"process {driver.process.pid} on " in line and "already runs this workflow" in line
    assert "Traceback" not in output
    toy.let_finish()
    driver.succeed()
    assert len(toy.starts()) == 1


def test_ctrl_c_cancels_and_the_next_run_resumes(toy):
    toy.write(training_rule())
    driver = toy.start_process()
    job = toy.await_training(1, driver)
    driver.send_signal(signal.SIGINT)
    assert "SIGINT is ignored" not in driver.finish()
    toy.let_finish()
    output = toy.succeed()
    assert toy.final_states()[job] == "CANCELLED", output
    (_, first), (step, second) = toy.starts()
    assert first == job != second and step > 0  # it had saved its state


def test_repeated_ctrl_c_still_cancels_every_job(toy):
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
    states = toy.final_states()
    # SLURM reports a job that is cancelled while it starts as FAILED, by signal 9.
    assert len(states) == 20 and set(states.values()) <= {"CANCELLED", "FAILED"}
    assert not list(toy.folder.glob("*.txt"))


USER_OPTIONS = {
    "SBATCH_PARTITION": "cancel", "SBATCH_TIMELIMIT": "1", "SBATCH_MEM_PER_NODE": "7",
    "SBATCH_JOB_NAME": "mine", "SQUEUE_STATES": "FAILED", "SQUEUE_FORMAT": "%j", "SQUEUE_SORT": "i",
    "SQUEUE_USERS": "nobody", "SCANCEL_STATE": "PENDING", "SACCT_FORMAT": "jobid",
}  # fmt: skip
"""Options that users set for their own use of SLURM's programs."""


def test_slurm_options_in_the_environment_are_ignored(toy):
    toy.environment.update(USER_OPTIONS)
    toy.write(
        "rule r:\n    output: 'r.txt'\n    resources: mem_mb=300, runtime=7\n"
        "    shell: 'scontrol show job $SLURM_JOB_ID > {output}; sleep 3'\n"
    )
    output = toy.succeed()
    options = "SBATCH_JOB_NAME, SBATCH_MEM_PER_NODE, SBATCH_PARTITION, SBATCH_TIMELIMIT"
    assert f"submitit: environment variables {options} are ignored" in output
    description = (toy.folder / "r.txt").read_text()
    assert "TimeLimit=00:07:00" in description and "MinMemoryNode=300M" in description
    assert "Partition=cancel" not in description and "JobName=r-" in description
    assert len(toy.jobs()) == 1


def test_workflows_with_a_common_folder_have_their_own_jobs(toy, cluster, tmp_path):
    """For example by a common profile: the rules and files have the same names."""
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
        assert "reattached" not in other.succeed(folder=folder)
        assert (other.folder / "r.txt").read_text() == "second\n"
        assert list(toy.jobs().values()) == ["RUNNING"]
        assert "reattached" in reattach_and_succeed(toy, folder=folder)
    assert (toy.folder / "r.txt").read_text() == "first\n"
    assert len(list(folder.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_a_one_line_error(toy):
    toy.write("rule r:\n    output: 'r.txt'\n    shell: 'touch {output}'\n")
    output = toy.start(folder="/proc/submitit").fail()
    assert "submitit: /proc/submitit: " in output and "Traceback" not in output


def test_on_interrupt_leave_keeps_the_jobs_running(toy):
    toy.write(training_rule())
    driver = toy.start(on_interrupt="leave")
    job = toy.await_training(1, driver)
    driver.send_signal(signal.SIGINT)
    assert "1 jobs keep running" in driver.finish()
    saved = toy.saved()
    wait_for(lambda: toy.saved() > saved)
    assert toy.jobs()[job] == "RUNNING"
    assert_reattaches(toy, job)


def test_running_jobs_that_are_not_requested_are_reported(toy):
    job = kill_while_training(toy)
    toy.write(training_rule(name="other", steps=1))
    assert f"to cancel them: scancel {job}" in toy.succeed("other.txt")


def test_a_directory_locked_by_another_snakemake_is_an_error(toy):
    toy.write(
        "rule r:\n    output: 'r.txt'\n"
        "    shell: 'until [ -e go ]; do sleep 0.1; done; touch {output}'\n"
    )
    with toy_workflow.launch(
        "snakemake", "--cores", "1", cwd=toy.folder, env=toy.environment
    ) as other:
        locks = toy.folder / ".snakemake" / "locks"
        wait_for(lambda: locks.is_dir() and any(locks.iterdir()))
        output = toy.start().fail()
        assert "another Snakemake has locked this directory" in output
        assert "snakemake --unlock" in output
        (toy.folder / "go").touch()
        assert other.wait() == 0


def test_a_job_that_ends_while_snakemake_starts_is_recorded(toy):
    """Its outputs exist without incomplete markers, so that Snakemake takes them as complete."""
    toy.write(training_rule(params="version=1") + SECOND)
    driver = toy.start("train.txt")
    job = toy.await_training(1, driver)
    driver.kill()
    toy.let_finish()
    toy.await_state(job, "COMPLETED")
    markers = toy.folder / ".snakemake" / "incomplete"
    (marker,) = markers.iterdir()
    marker.unlink()  # as if Snakemake had looked just before the step wrote it again
    toy.succeed("second.txt")
    assert toy.records() == [] and list(markers.iterdir()) == []
    assert len(toy.starts()) == 1
    toy.write(training_rule(params="version=2") + SECOND)
    assert "Params have changed" in toy.succeed("--dry-run", "train.txt")  # they are recorded
