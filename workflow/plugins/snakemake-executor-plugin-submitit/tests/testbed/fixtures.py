"""Fixtures with a real SLURM, for a conftest.py to import."""

import os

import pytest

from testbed.slurm import Cluster, missing_packages, missing_programs
from testbed.toy_workflow import Toy

_CLUSTER = pytest.StashKey[Cluster]()


@pytest.fixture(scope="session")
def cluster(request, tmp_path_factory):
    """A real SLURM of two nodes, one for each process of pytest.

    If SLURM is not installed, its tests are skipped; in continuous integration they fail.
    """
    require_slurm()
    stash = request.config.stash
    if _CLUSTER not in stash:  # one cluster, even if several conftest.py import this fixture
        shared = tmp_path_factory.getbasetemp()
        template = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "database"
        cluster = Cluster(tmp_path_factory.mktemp("slurm"), tied=True, template=template)
        cluster.start()
        stash[_CLUSTER] = cluster
    request.addfinalizer(stash[_CLUSTER].stop)
    return stash[_CLUSTER]


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


def report_missing(reason):
    """Skip a test because a program is missing; fail it in continuous integration."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
