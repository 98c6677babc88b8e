"""Fixtures of the finished project, which is made once by the real commands for all workers."""

import shutil

import pytest

from tests.helpers import finished_project
from tests.helpers.once import make_once
from tests.helpers.versioned import Versioned


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """The project after `snakemake all`, recorded and pushed by DVC.

    All workers share it: a test that writes to it, as Snakemake does, takes a copy.
    """
    folder = make_once(tmp_path_factory, worker_id, "finished", finished_project.finish)
    return Versioned.at(folder / finished_project.NAME)


@pytest.fixture
def project(finished, tmp_path):
    """A copy of the finished project's params and results, which a test may change."""
    copy = finished_project.copy(finished, tmp_path / "project")
    yield copy
    shutil.rmtree(copy.folder)
