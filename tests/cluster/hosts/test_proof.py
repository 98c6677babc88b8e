"""`smt prove` from a login host, through what happens to the hosts and to SLURM meanwhile."""

import json
import signal
import sys

import pytest

from smt.proof.record import ProofRecord
from testbed.slurm import LOGIN, NODES
from testbed.waiting import wait_for
from tests.helpers.hold import Holds
from tests.helpers.host_jobs import sends_in_vain
from tests.helpers.trainings import RUN_OF_DEMO, edit_demo

pytestmark = pytest.mark.xdist_group("hosts")

RUN = RUN_OF_DEMO
DRAW = "132"
"""A seed whose events come long before the end, the first on rank 0, and whose kill comes last."""

EVENT = f"""
touch "$HELD/{RUN}"
echo "$SMT_PROOF_NODE $SMT_PROOF_JOB" > "$1.draft"
mv "$1.draft" "$1"
until [ -e "$1.done" ]; do sleep 0.1; done
rm "$HELD/{RUN}"
"""
"""A command that holds the training until the test has done to the hosts what is its argument."""


class SiteEvents:
    """The events of a proof, which the test causes from outside of the hosts."""

    def __init__(self, folder):
        folder.mkdir()
        self._folder, self._script = folder, folder / "event.sh"
        self._script.write_text(EVENT)

    def options(self, *names):
        return [
            option
            for name in names
            for option in ("--event", f"sh {self._script} {self._folder / name}")
        ]

    def begin(self, name, process, log):
        """Wait for an event; return the node and the job that its command was told."""
        path = self._folder / name

        def has_begun():
            assert process.poll() is None, log.read_text()
            return path.exists()

        wait_for(has_begun, log.read_text)
        return path.read_text().split()

    def end(self, name):
        """Let the command of an event end."""
        (self._folder / f"{name}.done").touch()


@pytest.fixture
def hosts(hosts_cluster):
    """The cluster of several hosts, left with all of them on and plugged, and without a job."""
    yield hosts_cluster
    for node in NODES:
        if not hosts_cluster[node].is_on:
            hosts_cluster.boot(node)
        hosts_cluster[node].plug()
    hosts_cluster.controller_up()
    hosts_cluster.cancel_all()


@pytest.fixture
def proof(hosts, small_project, tmp_path):
    """A function that starts `smt prove` on the login host; returns its process and its log."""
    login, processes = hosts[LOGIN], []
    edit_demo(
        small_project, lambda demo: demo["recipes"]["imagenet1k"]["schedule"].update(epochs=10)
    )
    environment = {
        **hosts.environment(),
        **Holds(tmp_path / "holds").environment(),
        "HOLD_STEP": "1",
    }

    def start(*options):
        log = small_project / "prove.log"
        with log.open("wb") as file:
            process = login.start(
                sys.executable, "-m", "smt", "prove", RUN, "--launcher", "slurm", "--scale", "demo",
                *options, folder=small_project, env=environment, stdout=file, stderr=file,
            )  # fmt: skip
        processes.append(process)
        return process, log

    yield start
    for process in processes:
        if process.poll() is None:
            login.kill(process, signal.SIGKILL)
        process.wait()


def await_partition(hosts, log):
    """Wait until a rank waits for the other: one of them may have sent its part before."""
    one, other = (hosts[node] for node in NODES)
    wait_for(lambda: sends_in_vain(one, other) or sends_in_vain(other, one), log.read_text)


@pytest.mark.slow
def test_a_proof_goes_through_a_power_cut_a_partition_and_a_restart_of_slurmctld(
    hosts, small_project, proof, tmp_path
):
    events = SiteEvents(tmp_path / "events")
    options = events.options("power", "network", "controller")
    process, log = proof("--ranks", "2", "--nodes", "2", "--kills", "1", "--draw", DRAW, *options)

    cut, first_job = events.begin("power", process, log)
    hosts.node_down(cut)
    events.end("power")
    hosts.boot(cut)

    apart, second_job = events.begin("network", process, log)
    hosts[apart].unplug()
    events.end("network")
    await_partition(hosts, log)
    hosts[apart].plug()

    _, third_job = events.begin("controller", process, log)
    hosts.controller_down()
    hosts.controller_up()
    events.end("controller")

    assert wait_for(lambda: process.poll() is not None, log.read_text) and process.returncode == 0
    assert "1 kills (1 SIGUSR2); 3 events; equal to the byte" in log.read_text()
    assert first_job != second_job == third_job

    path = small_project / f"results/demo/proof/{RUN}-seed0-ranks2.json"
    record = ProofRecord(**json.loads(path.read_text()))
    assert record.is_equal
    power, network, controller = record.events
    assert (power.node, network.node) == (cut, apart)
    assert power.ended_at >= power.at_step >= power.resumed_at > 0
    assert network.ended_at is controller.ended_at is None
    assert list(record.resumed_at) == [power.resumed_at, record.kills[0].resumed_at]
