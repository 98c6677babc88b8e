"""What happens to hosts and their network during a training: it ends in the undisturbed bytes."""

import sys

import pytest

from testbed.slurm import NODES
from testbed.waiting import wait_for
from tests.helpers.debian import require
from tests.helpers.hold import HOLD_STEP, Holds
from tests.helpers.host_jobs import TrainingJob, sends_in_vain
from tests.helpers.trainings import RUN_OF_DEMO, outcome, provenance, work_dir

pytestmark = pytest.mark.xdist_group("hosts")

CHECKPOINT_STEPS = 3


@pytest.fixture
def holds(tmp_path):
    return Holds(tmp_path / "holds")


@pytest.fixture
def held_training(hosts_cluster, small_project, holds):
    """A function that submits a training of two hosts, and returns it when it is held."""

    def submit(*options):
        holds.hold(RUN_OF_DEMO)
        steps = ("--checkpoint-steps", str(CHECKPOINT_STEPS))
        job = TrainingJob(hosts_cluster, small_project, RUN_OF_DEMO, *steps, *options, holds=holds)
        wait_for(lambda: holds.is_held(RUN_OF_DEMO), job.output)
        return job

    yield submit
    for node in NODES:
        if not hosts_cluster[node].is_on:
            hosts_cluster.boot(node)
        hosts_cluster[node].plug()
    hosts_cluster.run("scontrol", "update", "nodename=n[1-2]", "state=resume", check=False)
    hosts_cluster.cancel_all()


def test_a_training_goes_on_through_events_that_end_no_host(
    hosts_cluster, small_project, holds, held_training, undisturbed_pair
):
    """slurmctld is restarted, a node is drained, and a partition of the network heals."""
    job = held_training()
    hosts_cluster.controller_down()
    hosts_cluster.controller_up()
    hosts_cluster.run("scontrol", "update", "nodename=n2", "state=drain", "reason=test")
    hosts_cluster["n2"].unplug()
    holds.let_go(RUN_OF_DEMO)
    wait_for(lambda: sends_in_vain(hosts_cluster["n1"], hosts_cluster["n2"]), job.output)
    hosts_cluster["n2"].plug()
    job.succeed()
    assert job.field("Restarts") == "0"
    assert outcome(small_project) == undisturbed_pair


@pytest.mark.slow
@pytest.mark.parametrize("node", ["n2", "n1"])
def test_a_power_cut_requeues_the_job_which_resumes_from_its_checkpoint(
    hosts_cluster, small_project, holds, held_training, undisturbed_pair, node
):
    """SLURM is told that the node is down, as it would find out by itself minutes later."""
    job = held_training()
    hosts_cluster.node_down(node)
    holds.let_go(RUN_OF_DEMO)
    job.await_requeue()
    hosts_cluster.boot(node)
    job.succeed()
    assert outcome(small_project) == undisturbed_pair
    _first, second = provenance(small_project)["attempts"]
    assert second["resumed_at_step"] in (CHECKPOINT_STEPS, HOLD_STEP)


@pytest.mark.slow
def test_the_ranks_that_a_power_cut_leaves_end_by_themselves(
    hosts_cluster, small_project, holds, held_training, undisturbed_pair
):
    """SLURM does not know of it: no connection is closed, and only time tells."""
    job = held_training("--stall-minutes", "1")
    hosts_cluster.power_cut("n2")
    holds.let_go(RUN_OF_DEMO)
    stacks = work_dir(small_project) / "stacks-rank0.txt"
    wait_for(
        lambda: stacks.exists() and "end of the stacks of rank 0" in stacks.read_text(), job.output
    )
    rank = f"^{sys.executable} -m smt train"  # not srun, which waits for the lost host
    wait_for(lambda: hosts_cluster["n1"].run("pgrep", "-f", rank, check=False).returncode)
    assert "rank 0: no step for 1 minutes" in job.output()
    hosts_cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    job.await_requeue()
    hosts_cluster.boot("n2")
    job.succeed()
    assert outcome(small_project) == undisturbed_pair


@pytest.mark.slow
def test_a_training_goes_on_while_packets_are_lost(
    hosts_cluster, small_project, holds, held_training, undisturbed_pair
):
    iptables = require("iptables")
    rule = ("INPUT", "-m", "statistic", "--mode", "random", "--probability", "0.05", "-j", "DROP")
    job = held_training()
    hosts_cluster["n2"].run(iptables, "-A", *rule)
    holds.let_go(RUN_OF_DEMO)
    job.succeed()
    dropped = hosts_cluster["n2"].run(iptables, "-nvxL", "INPUT").stdout.splitlines()[2].split()[0]
    hosts_cluster["n2"].run(iptables, "-D", *rule)
    assert int(dropped) > 0
    assert outcome(small_project) == undisturbed_pair
