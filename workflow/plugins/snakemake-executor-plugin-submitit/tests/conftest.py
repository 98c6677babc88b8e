"""Fixtures for all tests of the executor."""

from pathlib import Path

import pytest

from testbed.fixtures import cluster, hosts_cluster, room, toy

__all__ = ["cluster", "hosts_cluster", "room", "toy"]


def pytest_collection_modifyitems(items):
    """Mark the tests that start a SLURM cluster."""
    for item in items:
        if Path(__file__).parent / "cluster" in item.path.parents:
            item.add_marker(pytest.mark.cluster)
