"""SLURM 24.11, of Debian 13, on several hosts: what the executor takes from SLURM is the same."""

import os
import sys

import pytest

from testbed.fixtures import report_missing, require_hosts, require_slurm, shared_folders
from testbed.hosts import HostsError, cached_root
from testbed.slurm import LOGIN, HostsCluster, Settings
from testbed.toy_workflow import Toy, message, training_rule

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm_24")]

PACKAGES = (
    "slurmctld", "slurmd", "slurm-client", "munge", "iproute2", "procps",
    # What this environment's Python needs of the system.
    "libbz2-1.0", "libffi8", "liblzma5", "libncursesw6", "libreadline8t64", "libsqlite3-0",
    "libssl3t64", "zlib1g",
)  # fmt: skip


@pytest.fixture(scope="module")
def slurm_24(request, tmp_path_factory):
    require_slurm()
    require_hosts()
    try:
        root = cached_root("trixie", PACKAGES)
    except HostsError as error:
        report_missing(str(error))
    base = tmp_path_factory.getbasetemp()
    shared = shared_folders(
        request.config, base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    )
    folder = tmp_path_factory.mktemp("slurm_24")
    settings = Settings(accounting=False)
    with HostsCluster(folder, settings, shared=shared, tied=True, root=root) as cluster:
        yield cluster


@pytest.fixture
def toy(tmp_path, slurm_24):
    with Toy(tmp_path / "toy", slurm_24) as toy:
        toy.host = LOGIN
        yield toy


def test_the_hosts_have_debians_newer_slurm(slurm_24):
    assert slurm_24.run("sinfo", "--version").stdout.split()[1].startswith("24.11")


def test_a_training_resumes_after_a_power_cut_and_finishes(toy, slurm_24):
    toy.write(training_rule())
    driver = toy.start()
    job = toy.await_training(1, driver)
    (node,) = slurm_24.run("squeue", "-h", "-o", "%N", f"--jobs={job}").stdout.split()
    slurm_24.node_down(node)
    slurm_24.boot(node)
    toy.await_training(2, driver)
    toy.let_finish()
    driver.succeed()
    assert [job for _, job in toy.starts()] == [job, job]


def test_a_memory_kill_fails_with_the_remedy(toy, slurm_24):
    if not slurm_24.room.has_cgroups:
        pytest.skip("this machine has no control groups of version 1")
    toy.write(training_rule())
    driver = toy.start()
    toy.await_training(1, driver)
    (toy.folder / "train.state.allocate").touch()
    line = message(driver.fail())
    assert "OUT_OF_MEMORY" in line and "raise mem_mb" in line, line
    assert len(toy.starts()) == 1


def test_ranks_of_srun_run_on_both_hosts(slurm_24):
    hello = "import os, socket; print(socket.gethostname(), os.environ['SLURM_PROCID'])"
    command = ("srun", "--nodes=2", "--mem=100", sys.executable, "-c", hello)
    assert sorted(slurm_24.run(*command).stdout.splitlines()) == ["n1 0", "n2 1"]
