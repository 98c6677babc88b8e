"""Fixtures on a real SLURM. A conftest.py that imports them has them."""

import os

import pytest

from testbed.slurm import Cluster, missing_packages, missing_programs
from testbed.toy_workflow import Toy

_CLUSTER = pytest.StashKey[Cluster]()


@pytest.fixture(scope="session")
def cluster(request, tmp_path_factory):
    """A real SLURM of two nodes, for the tests of one process of pytest: each has its own.

    Without SLURM they are reported as not run; in continuous integration they fail.
    """
    require_slurm()
    stash = request.config.stash
    if _CLUSTER not in stash:  # it is one, also where several conftest.py have this fixture
        shared = tmp_path_factory.getbasetemp()
        template = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "database"
        started = Cluster(tmp_path_factory.mktemp("slurm"), tied=True, template=template)
        started.start()
        stash[_CLUSTER] = started
    request.addfinalizer(stash[_CLUSTER].stop)
    return stash[_CLUSTER]


@pytest.fixture
def toy(tmp_path, cluster):
    """A folder for a workflow; what runs when the test ends, is ended."""
    with Toy(tmp_path / "toy", cluster) as toy:
        yield toy


def require_slurm():
    """Report a test without the programs of SLURM as not run, or as failed in CI."""
    if missing := missing_programs():
        report_missing(
            f"SLURM is not installed: {', '.join(missing)} missing "
            f"(apt-get install {' '.join(missing_packages())})"
        )


def report_missing(reason):
    """Skip a test for want of a program; fail it in continuous integration, which has them all."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
