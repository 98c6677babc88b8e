"""Rendezvous of processes: variables of torch, gloo and NCCL, and messages about absent ranks."""

import logging
import os
import re
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from smt.engine import distributed, rendezvous
from smt.engine.launch import free_port
from testbed.waiting import wait_for
from tests.helpers import ROOT, forkserver

STEP = {
    "SLURM_JOB_ID": "812", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "no-such-node[07-08]",
    "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.1",
}  # fmt: skip
"""Environment of a rank of `srun -N2 -n4`, typed on a login node."""


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[03-05,9],login1", "gpu03"),
        ("rack[1,3]-gpu[07-08]", "rack1-gpu07"),
        ("gpu[2,4-5].site.example,other", "gpu2.site.example"),
    ],
)
def test_the_first_node_of_a_list_as_slurm_writes_it(node_list, first):
    assert rendezvous.first_host(node_list) == first


def test_ranks_of_srun_meet_on_the_first_node_of_the_step(monkeypatch):
    """Where srun was typed may be a login node, on which no rank listens."""
    monkeypatch.setenv("PATH", "")  # no SLURM here: the node's name is what is left
    variables = dict(STEP)
    rendezvous.set_environment(variables)
    assert variables["MASTER_ADDR"] == "no-such-node07"
    assert [variables[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["3", "4", "1"]


def test_two_steps_on_one_node_have_different_ports(monkeypatch):
    monkeypatch.setenv("PATH", "")
    ports = set()
    for job, step in (("812", "0"), ("812", "1"), ("813", "0")):
        variables = {**STEP, "SLURM_JOB_ID": job, "SLURM_STEP_ID": step}
        rendezvous.set_environment(variables)
        ports.add(int(variables["MASTER_PORT"]))
    assert len(ports) == 3 and all(1024 < port < 32768 for port in ports)


def test_gloo_takes_the_interface_that_leads_to_rank_0():
    """Debian's /etc/hosts gives a host's own name 127.0.1.1, which no other host reaches."""
    variables = {**STEP, "MASTER_ADDR": "127.0.0.1"}
    rendezvous.set_environment(variables)
    assert variables["GLOO_SOCKET_IFNAME"] == "lo" and "NCCL_SOCKET_IFNAME" not in variables


def test_the_host_of_rank_0_does_not_offer_its_loopback_to_other_hosts(monkeypatch):
    """Its own name may be that of its loopback there."""
    interfaces = {"127.0.1.1": "lo", rendezvous._BEYOND: "eth3"}
    monkeypatch.setattr(rendezvous, "_interface_to", interfaces.get)
    variables = {
        "RANK": "0",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.1.1",
    }
    rendezvous.set_environment(variables)
    assert variables["GLOO_SOCKET_IFNAME"] == variables["NCCL_SOCKET_IFNAME"] == "eth3"


def test_variables_set_by_the_user_are_kept():
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4711", "GLOO_SOCKET_IFNAME": "ib0",
           "NCCL_SOCKET_IFNAME": "ib1"}  # fmt: skip
    variables = {**STEP, **settings}
    rendezvous.set_environment(variables)
    assert {name: variables[name] for name in settings} == settings


def test_a_single_process_needs_no_variables():
    variables = {"SLURM_JOB_ID": "812"}
    rendezvous.set_environment(variables)
    assert variables == {"SLURM_JOB_ID": "812"}


AWAITED, LOST, TIMEOUT = "TEST_AWAITED", "TEST_LOST_RANK", "TEST_LEAVE_SECONDS"


def connect(timeout: timedelta) -> None:
    """Run one rank; print whether it connected.

    The rank to be lost, or else rank 0, goes on once its file to wait for is there.
    """
    rendezvous._REPORT_INTERVAL = timedelta(seconds=1)
    rendezvous.CONNECT_TIMEOUT = timeout
    rendezvous.LEAVE_TIMEOUT = timedelta(seconds=float(os.environ.get(TIMEOUT, "300")))
    logging.basicConfig(format="%(message)s")
    try:
        rendezvous.connect("gloo")
        print("connected", flush=True)
    except RuntimeError as error:
        print(type(error).__name__)
    if os.environ["RANK"] == os.environ.get(LOST, "0") and AWAITED in os.environ:
        wait_for(Path(os.environ[AWAITED]).exists)
    if os.environ["RANK"] == os.environ.get(LOST):
        os._exit(1)
    distributed.stop()
    print("left", flush=True)


def start(ranks: list[int], world_size: int, folder: Path, timeout: float = 300, **more: str):
    """Start these ranks of a training, each with its output in a file; timeout in seconds."""
    port, processes = str(free_port()), []
    for rank in ranks:
        variables = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0",
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **more}  # fmt: skip
        with (folder / str(rank)).open("wb") as file:
            processes.append(
                forkserver.start(
                    "tests.unit.engine.test_rendezvous", str(timeout), cwd=ROOT,
                    env={**os.environ, **variables}, stdout=file, stderr=file,
                )
            )  # fmt: skip
    return processes


def output_of(ranks: list[int], world_size: int, folder: Path, timeout: float = 300, **more: str):
    """Return the output of each of these ranks, once all have ended."""
    for process in start(ranks, world_size, folder, timeout, **more):
        process.wait()
    return [(folder / str(rank)).read_text() for rank in ranks]


def test_a_rank_that_has_not_started_is_named(tmp_path):
    """Rank 1 never starts: rank 0 names it while it waits, and fails after the timeout."""
    (output,) = output_of([0], 2, tmp_path, timeout=3)
    assert "waits for 1 of 2 processes: ranks 1 have not started" in output
    assert output.endswith("DistStoreError\nleft\n")


def test_a_rank_0_that_does_not_answer_is_named_with_its_address(tmp_path):
    (output,) = output_of([1], 2, tmp_path, timeout=3)
    assert re.search(r"rank 1 on \S+ waits for rank 0: nothing answers at 127.0.0.1 port", output)
    assert "DistNetworkError" in output


def test_ranks_connect_and_none_by_ending_then_breaks_off_what_others_still_open(tmp_path):
    """Each ends right after it connected; with so many, some do while others still connect."""
    for output in output_of(list(range(12)), 12, tmp_path):
        assert output.endswith("connected\nleft\n")


def await_connected(folder):
    wait_for(lambda: all("connected\n" in (folder / rank).read_text() for rank in "01"))


def test_a_rank_keeps_its_connections_until_every_other_has_ended_its_exchanges(tmp_path):
    awaited = tmp_path / "awaited"
    processes = start([0, 1], 2, tmp_path, **{AWAITED: str(awaited), TIMEOUT: "300"})
    await_connected(tmp_path)
    assert processes[1].poll() is None
    assert all((tmp_path / rank).read_text().endswith("connected\n") for rank in "01")
    awaited.touch()
    for process in processes:
        process.wait()
    assert all((tmp_path / rank).read_text().endswith("left\n") for rank in "01")


def output_without(lost, folder):
    """Return the output of the other rank of two where one is lost once both are connected."""
    awaited = folder / "awaited"
    processes = start([0, 1], 2, folder, **{LOST: str(lost), AWAITED: str(awaited)})
    await_connected(folder)
    awaited.touch()
    for process in processes:
        process.wait()
    return (folder / str(1 - lost)).read_text()


def test_a_lost_rank_is_waited_for_until_the_timeout_at_most(tmp_path, monkeypatch):
    monkeypatch.setenv(TIMEOUT, "1")
    assert output_without(1, tmp_path).endswith("connected\nleft\n")


def test_rank_0_which_serves_the_store_may_be_lost(tmp_path):
    output = output_without(0, tmp_path)
    assert output.startswith("connected\n") and output.endswith("left\n")


if __name__ == "__main__":
    connect(timedelta(seconds=float(sys.argv[1])))
