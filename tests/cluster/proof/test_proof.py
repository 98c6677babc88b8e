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
    exit_codes,
    make_small_project,
    metrics,
    one_line,
    output_of,
    run_dir,
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
def login_node(cluster, project, tmp_path, monkeypatch):
    """A copy of the project as the working folder, as on a login node of the cluster."""
    project = copy_project(project, tmp_path / "project")
    monkeypatch.chdir(project)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment()[name])
    yield project
    wait_for(lambda: not cluster.run("squeue", "--noheader", "--me").stdout)


def trainings(cluster):
    """Return the process of each rank that runs on the cluster, without data workers."""
    processes = {}
    for process in psutil.process_iter(["cmdline", "environ", "ppid"]):
        environment = process.info["environ"] or {}
        if environment.get("SLURM_CONF") == str(cluster.slurm_conf) and "RANK" in environment:
            processes[process.pid] = process
    parents = [process for process in processes.values() if process.info["ppid"] not in processes]
    return {int(process.info["environ"]["RANK"]): process for process in parents}


def alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_proof_through_slurm_ends_equal(cluster, login_node):
    """Its event cancels the job of an attempt; the next attempt is a job of its own."""
    set_epochs(login_node, 8)
    cancel = (
        "scancel $SMT_PROOF_JOB; while squeue -hj $SMT_PROOF_JOB | grep -q .; do sleep 0.1; done"
    )
    result = smt(
        login_node, "prove", RUN, "--launcher", "slurm", "--kills", "1", "--draw", "1",
        "--event", cancel, "--tables", "never",
    )  # fmt: skip
    assert "1 kills (1 SIGTERM); 1 events; equal to the byte" in result.stdout
    record = json.loads((login_node / f"results/demo/proof/{RUN}-seed0-ranks1.json").read_text())
    assert ProofRecord(**record).is_equal, record
    assert (record["launcher"], record["nodes"], record["ranks"]) == ("slurm", 1, 1)
    (event,) = record["events"]
    assert event["node"] in ("n1", "n2") and event["ended_at"] >= event["at_step"]
    assert record["resumed_at"] == [event["resumed_at"], record["kills"][0]["resumed_at"]]


@pytest.mark.slow
def test_a_proof_on_two_nodes_ends_equal(cluster, login_node):
    arguments = ("--nodes", "2", "--ranks", "2", "--kills", "3", "--draw", "12")
    result = smt(login_node, "prove", RUN, "--launcher", "slurm", *arguments)
    assert "3 kills" in result.stdout and "equal to the byte" in result.stdout
    record = json.loads((login_node / f"results/demo/proof/{RUN}-seed0-ranks2.json").read_text())
    assert ProofRecord(**record).is_equal, record
    assert (record["launcher"], record["nodes"], record["ranks"]) == ("slurm", 2, 2)
    text = (login_node / "results/demo/proof/proof.md").read_text()
    assert "2 on 2 nodes of SLURM" in text


def kill_worker_and_rank(cluster, login_node, ranks):
    """Kill a data worker of the last rank and then rank 1, of a training on two nodes."""
    per_node = ranks // 2
    attempt = SlurmLauncher(REQUEST).start(
        [*TRAIN, "--workers", "1"], ranks, login_node / "logs" / "hit"
    )
    try:
        await_step(run_dir(login_node), 4, attempt)
        processes = trainings(cluster)
        nodes = {rank: processes[rank].environ()["SLURMD_NODENAME"] for rank in processes}
        assert nodes == {rank: f"n{1 + rank // per_node}" for rank in range(ranks)}
        # Data workers live for one epoch: between two epochs there are none.
        workers = {rank: wait_for(processes[rank].children)[0] for rank in reversed(range(ranks))}
        assert attempt.kill_worker(ranks - 1)
        wait_for(lambda: not alive(workers[ranks - 1]))
        assert attempt.poll() is None
        wait_for(lambda: any(map(alive, processes[ranks - 1].children())), attempt.last_message)

        attempt.kill(signal.SIGKILL, 1)
        codes = exit_codes(attempt)
        assert not any(map(alive, processes.values()))
        return codes
    finally:
        attempt.close()


def test_a_rank_and_a_data_worker_are_killed_on_two_nodes(cluster, login_node):
    set_epochs(login_node, 1000)  # it is killed long before
    assert kill_worker_and_rank(cluster, login_node, 2) == [EXIT_RESUME, -signal.SIGKILL]


@pytest.mark.slow
def test_a_rank_and_a_data_worker_are_killed_among_four_ranks(cluster, login_node):
    set_epochs(login_node, 30)
    assert kill_worker_and_rank(cluster, login_node, 4) == [
        EXIT_RESUME,
        -signal.SIGKILL,
        EXIT_RESUME,
        EXIT_RESUME,
    ]
    attempt = SlurmLauncher(REQUEST).start(TRAIN, 4, login_node / "logs" / "second")
    assert exit_codes(attempt) == [0, 0, 0, 0], attempt.last_message()
    assert metrics(login_node)["steps"] == 30 * STEPS_PER_EPOCH
    assert not attempt.kill_worker(0), "of a training that has ended"


def test_closing_a_launch_ends_its_ranks(cluster, login_node):
    attempt = SlurmLauncher(REQUEST).start(TRAIN, 2, login_node / "logs" / "closed")
    wait_for(lambda: len(trainings(cluster)) == 2, attempt.last_message)
    assert attempt.poll() is None
    attempt.close()
    assert not trainings(cluster)
    assert attempt.poll() == [-signal.SIGKILL, -signal.SIGKILL]


def test_trainings_end_when_the_proof_is_killed(cluster, login_node):
    set_epochs(login_node, 1000)
    with start(login_node, "prove", RUN, "--launcher", "slurm", "--scale", "demo") as process:
        wait_for(lambda: trainings(cluster), lambda: output_of(login_node))
        process.kill()
    wait_for(lambda: not trainings(cluster))
    folder = login_node / f"results/demo/proof/{RUN}-seed0-ranks1/undisturbed"
    assert folder.exists() and not list(folder.rglob("metrics.json")), "it trained to its end"


def test_inside_a_job_the_ranks_are_a_step_of_it(cluster, login_node, tmp_path):
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
        f"--wrap=SLURM_LABELIO=1 exec {sys.executable} {script} {login_node}/logs/in_job",
    ).stdout.strip()  # fmt: skip
    assert "[0, 0, 0, 0] smt, version" in (tmp_path / "out").read_text()
    assert set(cluster.run(*jobs).stdout.split()) - before == {job}


def test_a_partition_that_does_not_exist_is_one_line(cluster, project):
    result = smt(
        project, "prove", RUN, "--launcher", "slurm", "--partition", "nowhere", check=False,
        env=cluster.environment(),
    )  # fmt: skip
    assert result.returncode == 2
    one_line(result, "--launcher slurm: ", "nowhere", "Invalid partition name", "sinfo")


def test_a_rank_that_cannot_start_is_one_line_and_ends_all_ranks(cluster, login_node):
    (login_node / "logs" / "odd-rank1.log").mkdir(parents=True)
    with pytest.raises(UserError, match=r"error: n2: .*odd-rank1.log'; results have to lie in a"):
        SlurmLauncher(REQUEST).start(TRAIN, 2, login_node / "logs" / "odd")
    assert not trainings(cluster)


def test_a_missing_srun_is_one_line(login_node, monkeypatch):
    monkeypatch.setenv("PATH", str(login_node))
    with pytest.raises(UserError, match=r"srun cannot be started: No such file.*--launcher local"):
        SlurmLauncher(REQUEST).start(TRAIN, 2, login_node / "logs" / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--launcher", "slurm", "--nodes", "2", "--ranks", "3"), "--ranks 4"),
        (("--nodes", "2"), "add: --launcher slurm"),
        (("--partition", "gpu"), "add: --launcher slurm"),
    ],
)
def test_inconsistent_options_are_one_line(project, options, message):
    result = smt(project, "prove", RUN, *options, check=False)
    assert result.returncode == 2
    one_line(result, message)


def test_slurm_variables_of_the_environment_are_used(login_node, cluster, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "high")
    monkeypatch.setenv("SLURM_TIMELIMIT", "3")
    monkeypatch.setenv("SLURM_NTASKS", "7")
    monkeypatch.setitem(os.environ, "SLURM_MEM_PER_CPU", "1")
    attempt = SlurmLauncher(REQUEST).start(TRAIN, 2, login_node / "logs" / "asked")
    try:
        job = cluster.run("squeue", "--me", "--noheader", "--format=%P %l %D %j").stdout.split()
        assert job == ["high", "3:00", "2", "smt-prove"]
    finally:
        attempt.close()
