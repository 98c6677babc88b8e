"""`smt prove` through a real SLURM: trainings that run on two nodes, killed where they run."""

import json
import os
import signal
import sys

import psutil
import pytest

from smt.errors import EXIT_RESUME, UserError
from smt.proof.record import ProofRecord
from smt.proof.slurm import Request, SlurmLauncher
from testbed.waiting import wait_for
from tests.helpers.trainings import (
    RUN_OF_DEMO,
    STEPS_PER_EPOCH,
    await_step,
    copy_project,
    edit_demo,
    ended,
    make_small_project,
    metrics,
    one_line,
    run_dir,
    said,
    smt,
    start,
)

pytestmark = pytest.mark.xdist_group("proof_on_nodes")  # their project has one run

RUN = RUN_OF_DEMO
REQUEST = Request(nodes=2, cpus=1, memory_mb=2500, minutes=10)
TRAIN = ("train", RUN, "--scale", "demo", "--checkpoint-steps", "3")


@pytest.fixture(scope="module")
def project(tmp_path_factory, small_data):
    """A small project, whose run 4 processes can share."""
    project = make_small_project(tmp_path_factory.mktemp("on_nodes") / "project", small_data)
    edit_demo(project, lambda demo: demo["recipes"]["*"].update(device_batch=2))
    return project


def set_epochs(project, epochs):
    edit_demo(project, lambda demo: demo["recipes"]["imagenet1k"]["schedule"].update(epochs=epochs))


@pytest.fixture
def here(cluster, project, tmp_path, monkeypatch):
    """This process in a copy of the project, as on a login node of the cluster."""
    project = copy_project(project, tmp_path / "project")
    monkeypatch.chdir(project)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment()[name])
    yield project
    wait_for(lambda: not cluster.run("squeue", "--noheader", "--me").stdout)


def trainings(cluster):
    """Return the process of each rank that runs on the cluster, without data workers."""
    found = {}
    for process in psutil.process_iter(["cmdline", "environ", "ppid"]):
        told = process.info["environ"] or {}
        if told.get("SLURM_CONF") == str(cluster.slurm_conf) and "RANK" in told:
            found[process.pid] = process
    parents = [each for each in found.values() if each.info["ppid"] not in found]
    return {int(each.info["environ"]["RANK"]): each for each in parents}


def alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_proof_through_slurm_ends_equal(cluster, here):
    done = smt(here, "prove", RUN, "--launcher", "slurm", "--kills", "1", "--tables", "never")
    assert "1 kills" in done.stdout and "equal to the byte" in done.stdout
    seen = json.loads((here / f"results/demo/proof/{RUN}-seed0-ranks1.json").read_text())
    assert ProofRecord(**seen).is_equal, seen
    assert (seen["launcher"], seen["nodes"], seen["ranks"]) == ("slurm", 1, 1)


@pytest.mark.slow
def test_a_proof_on_two_nodes_ends_equal(cluster, here):
    arguments = ("--nodes", "2", "--ranks", "2", "--kills", "3", "--draw", "12")
    done = smt(here, "prove", RUN, "--launcher", "slurm", *arguments)
    assert "3 kills" in done.stdout and "equal to the byte" in done.stdout
    seen = json.loads((here / f"results/demo/proof/{RUN}-seed0-ranks2.json").read_text())
    assert ProofRecord(**seen).is_equal, seen
    assert (seen["launcher"], seen["nodes"], seen["ranks"]) == ("slurm", 2, 2)
    text = (here / "results/demo/proof/proof.md").read_text()
    assert "2 on 2 nodes of SLURM" in text


def hit(cluster, here, ranks):
    """Kill a data worker of the last rank and then rank 1, of a training on two nodes."""
    per_node = ranks // 2
    attempt = SlurmLauncher(REQUEST).start([*TRAIN, "--workers", "1"], ranks, here / "logs" / "hit")
    try:
        await_step(run_dir(here), 4, attempt)
        processes = trainings(cluster)
        nodes = {rank: processes[rank].environ()["SLURMD_NODENAME"] for rank in processes}
        assert nodes == {rank: f"n{1 + rank // per_node}" for rank in range(ranks)}
        # Of each epoch a training has new ones: between two there are none.
        workers = {rank: wait_for(processes[rank].children)[0] for rank in reversed(range(ranks))}
        assert attempt.kill_worker(ranks - 1)
        wait_for(lambda: not alive(workers[ranks - 1]))
        assert attempt.poll() is None
        wait_for(lambda: any(map(alive, processes[ranks - 1].children())), attempt.last_message)

        attempt.kill(signal.SIGKILL, 1)
        codes = ended(attempt)
        assert not any(map(alive, processes.values()))
        return codes
    finally:
        attempt.close()


def test_one_rank_and_one_data_worker_are_hit_on_two_nodes(cluster, here):
    set_epochs(here, 1000)  # it is killed long before
    assert hit(cluster, here, 2) == [EXIT_RESUME, -signal.SIGKILL]


@pytest.mark.slow
def test_one_rank_and_one_data_worker_are_hit_among_four_on_two_nodes(cluster, here):
    set_epochs(here, 30)
    assert hit(cluster, here, 4) == [EXIT_RESUME, -signal.SIGKILL, EXIT_RESUME, EXIT_RESUME]
    attempt = SlurmLauncher(REQUEST).start(TRAIN, 4, here / "logs" / "second")
    assert ended(attempt) == [0, 0, 0, 0], attempt.last_message()
    assert metrics(here)["steps"] == 30 * STEPS_PER_EPOCH
    assert not attempt.kill_worker(0), "of a training that has ended"


def test_what_is_closed_is_gone(cluster, here):
    attempt = SlurmLauncher(REQUEST).start(TRAIN, 2, here / "logs" / "closed")
    wait_for(lambda: len(trainings(cluster)) == 2, attempt.last_message)
    assert attempt.poll() is None
    attempt.close()
    assert not trainings(cluster)
    assert attempt.poll() == [-signal.SIGKILL, -signal.SIGKILL]


def test_trainings_end_with_the_proof_that_started_them(cluster, here):
    set_epochs(here, 1000)
    with start(here, "prove", RUN, "--launcher", "slurm", "--scale", "demo") as process:
        wait_for(lambda: trainings(cluster), lambda: said(here))
        process.kill()
    wait_for(lambda: not trainings(cluster))
    folder = here / f"results/demo/proof/{RUN}-seed0-ranks1/undisturbed"
    assert folder.exists() and not list(folder.rglob("metrics.json")), "it trained to its end"


def test_in_a_job_they_are_a_step_of_it_whatever_its_options(cluster, here, tmp_path):
    script = tmp_path / "in_job.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from smt.proof.slurm import Request, SlurmLauncher\n"
        "request = Request(nodes=2, cpus=1, memory_mb=2500, minutes=10)\n"
        "attempt = SlurmLauncher(request).start(['--version'], 4, Path(sys.argv[1]))\n"
        "while (codes := attempt.poll()) is None:\n"
        "    time.sleep(0.1)\n"
        "print(codes, attempt.last_message())\n"
    )
    jobs = ("squeue", "--noheader", "--states=all", "--format=%A")
    before = set(cluster.run(*jobs).stdout.split())
    job = cluster.run(
        "sbatch", "--parsable", "--wait", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1",
        "--cpus-per-task=2", "--mem-per-cpu=1500", "--distribution=cyclic", "--gpus-per-node=1",
        f"--output={tmp_path}/out", "--partition=gpu", "--time=10",
        f"--wrap=SLURM_LABELIO=1 exec {sys.executable} {script} {here}/logs/in_job",
    ).stdout.strip()  # fmt: skip
    assert "[0, 0, 0, 0] smt, version" in (tmp_path / "out").read_text()
    assert set(cluster.run(*jobs).stdout.split()) - before == {job}


def test_a_partition_that_does_not_exist_is_one_line(cluster, project):
    done = smt(
        project, "prove", RUN, "--launcher", "slurm", "--partition", "nowhere", check=False,
        env=cluster.environment(),
    )  # fmt: skip
    assert done.returncode == 2
    one_line(done, "--launcher slurm: ", "nowhere", "Invalid partition name", "sinfo")


def test_a_rank_that_cannot_begin_is_one_line_and_ends_all(cluster, here):
    (here / "logs" / "odd-rank1.log").mkdir(parents=True)
    with pytest.raises(UserError, match=r"error: n2: .*odd-rank1.log'; results have to lie in a"):
        SlurmLauncher(REQUEST).start(TRAIN, 2, here / "logs" / "odd")
    assert not trainings(cluster)


def test_no_srun_is_one_line(here, monkeypatch):
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(UserError, match=r"srun cannot be started: No such file.*--launcher local"):
        SlurmLauncher(REQUEST).start(TRAIN, 2, here / "logs" / "none")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--launcher", "slurm", "--nodes", "2", "--ranks", "3"), "--ranks 4"),
        (("--nodes", "2"), "add: --launcher slurm"),
        (("--partition", "gpu"), "add: --launcher slurm"),
    ],
)
def test_options_that_do_not_fit_are_one_line(project, options, words):
    done = smt(project, "prove", RUN, *options, check=False)
    assert done.returncode == 2
    one_line(done, words)


def test_the_environment_can_say_more_of_what_is_asked(here, cluster, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "high")
    monkeypatch.setenv("SLURM_TIMELIMIT", "3")
    monkeypatch.setenv("SLURM_NTASKS", "7")
    monkeypatch.setitem(os.environ, "SLURM_MEM_PER_CPU", "1")
    attempt = SlurmLauncher(REQUEST).start(TRAIN, 2, here / "logs" / "asked")
    try:
        shown = cluster.run("squeue", "--me", "--noheader", "--format=%P %l %D %j").stdout.split()
        assert shown == ["high", "3:00", "2", "smt-prove"]
    finally:
        attempt.close()
