"""Snakemake is killed, and started again: what runs is taken over, nothing is run twice."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.toy_workflow import Toy, training_rule
from tests.helpers.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.xdist_group("cluster")

MANY = """
rule all:
    input: expand("out/{i}.txt", i=range(24))
rule one:
    output: "out/{i}.txt"
    resources: mem_mb=300, runtime=5
    shell: "echo {wildcards.i} >> ran.txt; sleep 1; touch {output}"
"""


SECOND = """
rule second:
    input: "train.txt"
    output: "second.txt"
    resources: mem_mb=300, runtime=5
    shell: "touch {output}"
"""


@pytest.fixture
def toy(tmp_path, cluster):
    return Toy(tmp_path / "toy", cluster)


def killed_while_training(toy, number=signal.SIGKILL, **rule):
    """Start a training of a few seconds, and kill Snakemake while it runs."""
    toy.write(training_rule(**rule))
    process = toy.start()
    job = toy.await_starts(1, process)
    toy.await_that(lambda: any(each["job_id"] for each in toy.records()), process)
    process.send_signal(number)
    process.wait()
    return job


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_running_job_is_taken_over(toy, number):
    job = killed_while_training(toy, number, steps=80)
    said = toy.succeed()
    assert f"job {job}" in said and "taken over from an earlier start" in said
    assert toy.starts() == [(0, job)]
    assert list(toy.jobs()) == [job]
    assert toy.records() == []


def test_a_job_that_ended_meanwhile_is_harvested_and_recorded(toy):
    job = killed_while_training(toy, steps=30, params="version=1")
    wait_for(lambda: toy.jobs()[job] == "COMPLETED")
    toy.succeed()
    assert toy.starts() == [(0, job)] and list(toy.jobs()) == [job]
    assert "Nothing to be done" in toy.succeed()
    # What it was made with is on record as well: other parameters make it again.
    toy.write(training_rule(steps=30, params="version=2"))
    (toy.folder / "train.state").unlink()
    toy.succeed()
    assert len(toy.starts()) == 2


def test_a_job_that_failed_meanwhile_is_run_again(toy):
    job = killed_while_training(toy, steps=50)
    toy.cluster.run("scancel", job)
    wait_for(lambda: toy.jobs()[job] == "CANCELLED")
    toy.succeed()
    assert len(toy.starts()) == 2


def test_a_job_whose_parameters_have_changed_is_cancelled_and_begun_anew(toy):
    job = killed_while_training(toy, steps=900, params="rate=1")
    toy.write(training_rule(steps=40, params="rate=2"))
    (toy.folder / "train.state").unlink(missing_ok=True)
    toy.succeed()
    assert toy.jobs()[job] == "CANCELLED"
    assert len(toy.jobs()) == 2


def test_a_job_whose_number_was_never_noted_is_found_by_its_name(toy):
    job = killed_while_training(toy, steps=80)
    folder = toy.folder / ".snakemake" / "submitit" / "jobs"
    (path,) = folder.glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "job_id": None}))
    toy.succeed()
    assert toy.starts() == [(0, job)] and list(toy.jobs()) == [job]


def test_a_job_that_can_never_begin_is_replaced(toy):
    """Killed between sbatch and the file that tells the job what to do."""
    toy.write(training_rule(steps=20, slurm_extra="--begin=now+60"))
    process = toy.start()
    toy.await_that(lambda: any(each["job_id"] for each in toy.records()), process)
    process.kill()
    process.wait()
    (job,) = toy.jobs()
    (toy.folder / ".snakemake" / "submitit" / f"{job}_submitted.pkl").unlink()
    toy.write(training_rule(steps=20))
    toy.succeed()
    assert toy.jobs()[job] == "CANCELLED" and len(toy.starts()) == 1


@pytest.mark.parametrize("after", [2, 12])
def test_of_many_jobs_each_runs_once(toy, after):
    toy.write(MANY)
    process = toy.start()
    count = lambda: len((toy.folder / "ran.txt").read_text().split())  # noqa: E731
    toy.await_that(lambda: (toy.folder / "ran.txt").exists() and count() >= after, process)
    process.kill()
    process.wait()
    toy.succeed()
    ran = sorted(map(int, (toy.folder / "ran.txt").read_text().split()))
    assert ran == list(range(24))
    assert len(toy.jobs()) == 24


def test_a_group_that_runs_is_taken_over(toy):
    toy.write(MANY.replace("range(24)", "range(6)"))
    grouped = ("--groups", "one=small", "--group-components", "small=6")
    process = toy.start(*grouped)
    count = lambda: len((toy.folder / "ran.txt").read_text().split())  # noqa: E731
    toy.await_that(lambda: (toy.folder / "ran.txt").exists() and count() >= 2, process)
    process.kill()
    process.wait()
    toy.succeed(*grouped)
    ran = sorted(map(int, (toy.folder / "ran.txt").read_text().split()))
    assert ran == list(range(6))
    assert len(toy.jobs()) == 1


def test_two_at_once_are_refused_in_one_line(toy):
    toy.write(training_rule(steps=60))
    process = toy.start()
    toy.await_starts(1, process)
    first = toy.output
    code, said = toy.run()
    assert code != 0
    (line,) = [each for each in said.splitlines() if each.startswith("Error: submitit: ")]
    assert f"process {process.pid} on " in line and "already runs this workflow" in line
    assert "Traceback" not in said
    toy.output = first
    toy.finish(process)
    assert process.returncode == 0 and len(toy.starts()) == 1


def test_ctrl_c_cancels_and_the_next_start_goes_on(toy):
    toy.write(training_rule(steps=80))
    process = toy.start()
    job = toy.await_starts(1, process)
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE)
    said = toy.succeed()
    assert toy.jobs()[job] == "CANCELLED", said
    (_, first), (step, second) = toy.starts()
    assert first == job != second and step > 0  # it had saved what it had


def test_ctrl_c_leaves_the_jobs_where_it_is_told_to(toy):
    toy.write(training_rule(steps=80))
    process = toy.start(on_interrupt="leave")
    job = toy.await_starts(1, process)
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE)
    assert "1 jobs go on" in toy.output.read_text()
    time.sleep(1)
    assert toy.jobs()[job] == "RUNNING"
    toy.succeed()
    assert toy.starts() == [(0, job)]


def test_jobs_that_nobody_wants_any_more_are_named(toy):
    job = killed_while_training(toy, steps=900)
    toy.write(training_rule(name="other", steps=10))
    said = toy.succeed("other.txt")
    assert f"to cancel them: scancel {job}" in said
    toy.cluster.run("scancel", job)


def test_a_snakemake_with_another_profile_is_not_disturbed(toy):
    toy.write("rule r:\n    output: 'r.txt'\n    shell: 'sleep 8; touch {output}'\n")
    other = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "1"],
        cwd=toy.folder, env=toy.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    locks = toy.folder / ".snakemake" / "locks"
    wait_for(lambda: locks.is_dir() and any(locks.iterdir()))
    code, said = toy.run()
    assert code != 0 and "another Snakemake works in this directory" in said
    assert "snakemake --unlock" in said
    assert other.wait(PATIENCE) == 0


def test_a_job_that_ends_while_snakemake_starts_is_recorded(toy):
    """Its outputs are there and its marks are not yet: Snakemake believes that it is done."""
    toy.write(training_rule(steps=30, params="version=1") + SECOND)
    process = toy.start("train.txt")
    job = toy.await_starts(1, process)
    process.kill()
    process.wait()
    wait_for(lambda: toy.jobs()[job] == "COMPLETED")
    marks = toy.folder / ".snakemake" / "incomplete"
    (mark,) = marks.iterdir()
    mark.unlink()  # as if Snakemake had looked just before it came back
    toy.succeed("second.txt")
    assert toy.records() == [] and list(marks.iterdir()) == []
    assert len(toy.starts()) == 1
    (toy.folder / "train.state").unlink()
    toy.write(training_rule(steps=30, params="version=2") + SECOND)
    toy.succeed("second.txt")
    assert len(toy.starts()) == 2  # it is on record with what it was made
