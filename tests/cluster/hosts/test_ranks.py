"""A training over several hosts ends in the bytes of one on a single host."""

import sys

import pytest

from testbed.slurm import LOGIN
from testbed.waiting import PATIENCE, wait_for
from tests.helpers.debian import require
from tests.helpers.host_jobs import MEMORY, TrainingJob, run_on_login
from tests.helpers.trainings import RUN_OF_DEMO, edit_demo, make_small_project, outcome, smt

pytestmark = pytest.mark.xdist_group("hosts")

TRAIN = (sys.executable, "-m", "smt", "train", RUN_OF_DEMO)


def test_srun_from_a_login_node_trains_on_two_hosts(hosts_cluster, small_project, undisturbed_pair):
    """MASTER_ADDR is on another host than srun; each host's own name has the address 127.0.1.1."""
    result = run_on_login(hosts_cluster, small_project, "srun", "--nodes=2", MEMORY, *TRAIN)
    assert result.returncode == 0, result.stderr
    assert outcome(small_project) == undisturbed_pair


@pytest.mark.slow
def test_salloc_on_a_login_node_trains_on_two_hosts(hosts_cluster, small_project, undisturbed_pair):
    """`smt train` runs on the login node, which is not in the allocation, and calls srun."""
    result = run_on_login(
        hosts_cluster, small_project, "salloc", "--nodes=2", "--ntasks-per-node=1", MEMORY, *TRAIN
    )
    assert result.returncode == 0, result.stderr
    assert outcome(small_project) == undisturbed_pair


@pytest.mark.slow
def test_two_hosts_with_two_ranks_each_end_in_the_bytes_of_one_host(
    hosts_cluster, small_data, tmp_path
):
    one, two = (make_small_project(tmp_path / name, small_data) for name in ("one", "two"))
    for project in (one, two):
        edit_demo(project, lambda demo: demo["recipes"]["*"].update(device_batch=2))
    TrainingJob(hosts_cluster, two, RUN_OF_DEMO, per_node=2).succeed()
    smt(one, "train", RUN_OF_DEMO, ranks=4)
    assert outcome(one) == outcome(two)


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1])
def test_a_clock_that_is_two_minutes_ahead_changes_no_byte(
    hosts_cluster, small_project, undisturbed_pair, node
):
    """The clock of one host's rank; SLURM's own daemons keep the time of the machine."""
    ahead = f"[ $SLURM_NODEID != {node} ] || exec {require('faketime')} -f +120s {' '.join(TRAIN)}"
    result = run_on_login(
        hosts_cluster, small_project, "srun", "--nodes=2", MEMORY, "sh", "-c",
        f"{ahead}; exec {' '.join(TRAIN)}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert outcome(small_project) == undisturbed_pair


@pytest.mark.slow
@pytest.mark.parametrize(
    ("late", "message"),
    [
        (0, "rank 1 on n2 waits for rank 0: nothing answers at 10.66.0.11 port"),
        (1, "rank 0 on n1 waits for 1 of 2 processes: ranks 1 have not started"),
    ],
)
def test_a_rendezvous_without_a_host_names_who_waits_for_whom(
    hosts_cluster, small_project, late, message
):
    """The warning comes after 30 seconds; the other rank is let go then."""
    waiting = f"[ $SLURM_PROCID != {late} ] || until [ -e go ]; do sleep 0.2; done"
    log = small_project / "srun.log"
    with log.open("wb") as file:
        process = hosts_cluster[LOGIN].start(
            "srun", "--nodes=2", MEMORY, "--unbuffered", "sh", "-c",
            f"{waiting}; exec {' '.join(TRAIN)}", folder=small_project,
            env=hosts_cluster.environment(), stdout=file, stderr=file,
        )  # fmt: skip
    wait_for(lambda: message in log.read_text() or process.poll() is not None, log.read_text)
    (small_project / "go").touch()
    assert process.wait(PATIENCE) == 0, log.read_text()
    assert message in log.read_text()
