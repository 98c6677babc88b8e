"""Jobs of workflows on several hosts: memory kills, and Snakemake on a host that dies."""

import sys

import pytest

from testbed.slurm import LOGIN
from testbed.toy_workflow import Toy, message, rule, training_rule

pytestmark = pytest.mark.xdist_group("hosts")

TOO_MUCH = "bytearray(900 << 20)"


@pytest.fixture
def toy(tmp_path, hosts_cluster):
    """A folder for a workflow, whose Snakemake runs on the login node."""
    with Toy(tmp_path / "toy", hosts_cluster) as toy:
        toy.host = LOGIN
        yield toy
        hosts_cluster.cancel_all()


def require_cgroups(cluster):
    if not cluster.room.has_cgroups:
        pytest.skip("this machine has no control groups of version 1")


def test_a_job_that_its_control_group_kills_fails_with_the_remedy(toy, hosts_cluster):
    require_cgroups(hosts_cluster)
    toy.write(rule(f"{sys.executable} -c '{TOO_MUCH}'"))
    line = toy.fail()
    assert "OUT_OF_MEMORY" in line and "raise mem_mb" in line, line


@pytest.mark.parametrize("launcher", ["", "srun"])
def test_a_training_that_its_control_group_kills_is_not_requeued(toy, hosts_cluster, launcher):
    """It has reported progress, from which a requeue would come to the same end."""
    require_cgroups(hosts_cluster)
    toy.write(training_rule(launcher=launcher))
    driver = toy.start()
    toy.await_training(1, driver)
    (toy.folder / "train.state.allocate").touch()
    line = message(driver.fail())
    assert "OUT_OF_MEMORY" in line and "raise mem_mb" in line, line
    assert len(toy.starts()) == 1


def test_snakemake_on_another_host_reattaches_after_a_power_cut_of_its_own(toy, hosts_cluster):
    toy.host = "n2"
    toy.write(training_rule(slurm_extra="--nodelist=n1"))
    driver = toy.start()
    job = toy.await_training(1, driver)
    driver.await_that(lambda: any(record["job_id"] for record in toy.records()))
    hosts_cluster.power_cut("n2")
    driver.finish()
    toy.host = LOGIN
    driver = toy.start()
    driver.await_that(lambda: "reattached, from an earlier run" in driver.output())
    hosts_cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    hosts_cluster.boot("n2")
    toy.let_finish()
    driver.succeed()
    assert toy.starts() == [(0, job)]
    assert list(toy.jobs()) == [job]


def test_a_job_whose_host_loses_power_is_requeued_and_resumes(toy, hosts_cluster):
    toy.write(training_rule())
    driver = toy.start()
    job = toy.await_training(1, driver)
    (node,) = hosts_cluster.run("squeue", "-h", "-o", "%N", f"--jobs={job}").stdout.split()
    hosts_cluster.node_down(node)
    hosts_cluster.boot(node)
    toy.await_training(2, driver)
    toy.let_finish()
    driver.succeed()
    (_, first), (step, second) = toy.starts()
    assert (first, second) == (job, job)
    assert step > 0
