"""The finished project as fixtures: made once by the real commands for all workers, and copied."""

import shutil

import pytest

from tests.helpers import finished_project
from tests.helpers.once import made_once
from tests.helpers.versioned import Versioned


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """The project after every command of the DAG, recorded and pushed by DVC.

    All workers share it: a test that writes anything, as Snakemake does, takes a copy.
    """
    folder = made_once(tmp_path_factory, worker_id, "finished", finished_project.finish)
    return Versioned.at(folder / finished_project.NAME)


@pytest.fixture
def project(finished, tmp_path):
    """A copy of its params and results that a test may change."""
    copy = finished_project.copy(finished, tmp_path / "project")
    yield copy
    shutil.rmtree(copy.folder)
