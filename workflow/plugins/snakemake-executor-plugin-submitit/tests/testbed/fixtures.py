"""Fixtures with a real SLURM, for a conftest.py to import."""

import os
import sys
from pathlib import Path

import pytest

from testbed.hosts import Room, missing_requirement
from testbed.slurm import Cluster, HostsCluster, missing_packages, missing_programs
from testbed.toy_workflow import Toy

_CLUSTER = pytest.StashKey[Cluster]()
_HOSTS_CLUSTER = pytest.StashKey[HostsCluster]()


@pytest.fixture(scope="session")
def cluster(request, tmp_path_factory):
    """A real SLURM of two nodes, one for each process of pytest.

    If SLURM is not installed, its tests are skipped; in continuous integration they fail.
    """
    require_slurm()
    stash = request.config.stash
    if _CLUSTER not in stash:  # one cluster, even if several conftest.py import this fixture
        folder = tmp_path_factory.mktemp("slurm")
        cluster = Cluster(folder, tied=True, template=_base(tmp_path_factory) / "database")
        cluster.start()
        stash[_CLUSTER] = cluster
    request.addfinalizer(stash[_CLUSTER].stop)
    return stash[_CLUSTER]


@pytest.fixture(scope="session")
def hosts_cluster(request, tmp_path_factory):
    """A real SLURM of three hosts: `login`, `n1` and `n2`; one for each process of pytest.

    Its programs run on these hosts only. They share the folders of tests, this checkout and the
    environment. Without root, tests of several hosts are skipped.
    """
    require_slurm()
    require_hosts()
    stash = request.config.stash
    if _HOSTS_CLUSTER not in stash:
        base = _base(tmp_path_factory)
        cluster = HostsCluster(
            tmp_path_factory.mktemp("hosts"), tied=True, template=base / "database",
            shared=shared_folders(request.config, base),
        )  # fmt: skip
        cluster.start()
        stash[_HOSTS_CLUSTER] = cluster
    request.addfinalizer(stash[_HOSTS_CLUSTER].stop)
    return stash[_HOSTS_CLUSTER]


@pytest.fixture
def room(request, tmp_path, tmp_path_factory):
    """Two hosts, `a` and `b`, without SLURM."""
    require_hosts()
    shared = shared_folders(request.config, _base(tmp_path_factory))
    with Room(tmp_path / "room", ("a", "b"), shared, tied=True) as room:
        yield room


def shared_folders(config, base):
    """Return the folders that hosts of tests have in common."""
    return [base, config.rootpath, Path(sys.prefix), Path(sys.base_prefix)]


def _base(factory):
    """Return the temporary folder of this run of pytest, which all its workers have in common."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture
def toy(tmp_path, cluster):
    """A folder for a workflow; its jobs and Snakemakes end with the test."""
    with Toy(tmp_path / "toy", cluster) as toy:
        yield toy


def require_slurm():
    """Skip a test if SLURM is not installed; fail it in continuous integration."""
    if missing := missing_programs():
        report_missing(
            f"SLURM is not installed: {', '.join(missing)} missing "
            f"(apt-get install {' '.join(missing_packages())})"
        )


def require_hosts():
    """Skip a test if there cannot be several hosts; fail it in CI if the user is root."""
    if missing := missing_requirement():
        if os.geteuid() == 0:
            report_missing(missing)
        pytest.skip(missing)


def report_missing(reason):
    """Skip a test because a program is missing; fail it in continuous integration."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
