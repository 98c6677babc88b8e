"""A run's lock and collectives between hosts, as power cuts and partitions leave them."""

import json
import os
import shlex
import sys
from types import SimpleNamespace

import psutil
import pytest

from smt.engine.launch import free_port
from testbed.slurm import NODES
from testbed.waiting import wait_for
from tests.helpers import pause
from tests.helpers.trainings import RUN_OF_DEMO, outcome, output_of, provenance, smt, work_dir

pytestmark = pytest.mark.xdist_group("hosts")

RUN = RUN_OF_DEMO

RANK_1_PAUSED = """
from tests.helpers import pause
pause.stop_at_step("5", "1")
from smt.cli import main
main()
"""
"""A training whose rank 1 stops itself by SIGSTOP after some steps."""

FIRST_PAUSED = """
import os
from tests.helpers import pause
if "SLURM_RESTART_COUNT" not in os.environ:
    pause.stop_at_steps("5", "9")
from smt.cli import main
main()
"""
"""A training whose first attempt, and not that after a requeue, stops itself after two steps."""


def train(program, *options):
    """Return the command of a training by such a program."""
    return [sys.executable, "-c", program, "train", RUN, "--checkpoint-steps", "2", *options]


def child_of(process):
    """Return what runs on the host: the process itself waits outside of it."""

    def find():
        assert process.poll() is None, f"it ended with {process.poll()}"
        return psutil.Process(process.pid).children()

    (child,) = wait_for(find, every=0.01)
    return SimpleNamespace(pid=child.pid, poll=process.poll, send_signal=child.send_signal)


# --- a power cut ----------------------------------------------------------------------------------


def test_a_power_cut_ends_the_other_host_within_stall_minutes(
    room, small_project, undisturbed_pair
):
    """No FIN or RST tells the other rank; `--stall-minutes` does."""
    (small_project / "logs").mkdir()
    port, processes = str(free_port()), []
    for rank, host in enumerate((room["a"], room["b"])):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": room["a"].address, "MASTER_PORT": port,
        }  # fmt: skip
        with (small_project / "logs" / f"rank{rank}.log").open("wb") as log:
            processes.append(
                host.start(
                    *train(RANK_1_PAUSED, "--stall-minutes", "0.2"), folder=small_project,
                    env=environment, stdout=log, stderr=log,
                )
            )  # fmt: skip

    def logs():
        return "".join(output_of(small_project, f"rank{rank}") for rank in range(2))

    try:
        pause.await_stop(child_of(processes[1]), logs)
        processes[1].kill()  # nsenter, which stopped with its child: host b could not end
        room["b"].power_cut()
        code = wait_for(lambda: processes[0].poll(), logs)
        assert code == 75, logs()
        assert "rank 0: no step for 0.2 minutes" in logs()
        stacks = work_dir(small_project) / "stacks-rank0.txt"
        assert "end of the stacks of rank 0" in stacks.read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    smt(small_project, "train", RUN, ranks=2)
    assert outcome(small_project) == undisturbed_pair
    assert provenance(small_project)["attempts"][1]["resumed_at_step"] in (2, 4)


# --- a partition ----------------------------------------------------------------------------------


def submit(cluster, project):
    """Submit the run's training as a job that SLURM requeues when it loses the node."""
    (project / "logs").mkdir()
    return cluster.run(
        "sbatch", "--parsable", "--requeue", "--mem=900", "--open-mode=append",
        f"--chdir={project}", f"--output={project / 'logs' / 'job.log'}",
        f"--wrap=exec {shlex.join(train(FIRST_PAUSED))}",
    ).stdout.strip()  # fmt: skip


@pytest.fixture
def hosts(hosts_cluster):
    """The cluster of several hosts, left with all of them plugged, and without a job."""
    yield hosts_cluster
    for node in NODES:
        hosts_cluster[node].plug()
    hosts_cluster.cancel_all()


def test_a_partition_that_heals(hosts, small_project, undisturbed):
    """SLURM starts the job elsewhere, where it waits until the first attempt has ended."""
    cluster, project = hosts, small_project
    job = submit(cluster, project)

    def log():
        return output_of(project, "job") if (project / "logs" / "job.log").exists() else ""

    def holder():
        (path,) = list(project.glob("results/demo/runs/*/seed0/work-*/lock")) or [None]
        return json.loads(path.read_text() or "null") if path else None

    def is_paused():
        state = cluster[first["host"]].run("ps", "-o", "stat=", "-p", str(first["pid"]))
        return state.stdout.startswith("T")

    first = wait_for(holder, log)
    who = f"process {first['pid']} on {first['host']}"
    wait_for(is_paused, log)
    cluster.node_down(first["host"], keep_jobs=True)
    wait_for(lambda: f"{who} holds this run's lock, no heartbeat" in log(), log)
    cluster[first["host"]].run("kill", "-CONT", str(first["pid"]))
    wait_for(lambda: f"{who} trains this run, at step" in log(), log)
    assert holder() == first

    cluster[first["host"]].plug()
    cluster.run("scontrol", "update", f"nodename={first['host']}", "state=resume")
    wait_for(lambda: not cluster.run("squeue", "--noheader", "--job", job, check=False).stdout, log)
    wait_for(lambda: set(cluster.node_states().values()) == {"idle"}, cluster.node_states)
    assert outcome(project) == undisturbed, log()
    attempts = provenance(project)["attempts"]
    (other,) = set(NODES) - {first["host"]}
    assert [attempt["host"] for attempt in attempts] == [first["host"], other]
    assert attempts[1]["resumed_at_step"] in (6, 8)
