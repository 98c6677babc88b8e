"""Small projects with one run each, as fixtures: made once by the real command, and copied."""

import signal

import pytest

from tests.helpers.once import made_once
from tests.helpers.trainings import (
    RUN_OF_DEMO,
    copy_project,
    make_small_data,
    make_small_project,
    outcome,
    smt,
    stop_at,
)

SAID = "said.txt"
"""File in a project of what its training printed."""


@pytest.fixture(scope="session")
def small_data(tmp_path_factory, worker_id):
    """Params of a small project, its data and their manifests."""
    return made_once(tmp_path_factory, worker_id, "small_data", make_small_data)


@pytest.fixture
def small_project(tmp_path, small_data):
    """A small project without a run."""
    return make_small_project(tmp_path / "project", small_data)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, worker_id, small_data):
    """A small project whose run was left alone and is done; SAID has what it printed."""

    def make(folder):
        make_small_project(folder, small_data)
        (folder / SAID).write_text(smt(folder, "train", RUN_OF_DEMO).stderr)

    return made_once(tmp_path_factory, worker_id, "trained", make)


@pytest.fixture(scope="session")
def undisturbed(trained):
    """Weights and journal of that run."""
    return outcome(trained)


@pytest.fixture(scope="session")
def undisturbed_pair(tmp_path_factory, worker_id, small_data):
    """Weights and journal of the same run by two ranks, left alone."""

    def make(folder):
        make_small_project(folder, small_data)
        smt(folder, "train", RUN_OF_DEMO, ranks=2)

    return outcome(made_once(tmp_path_factory, worker_id, "trained_pair", make))


@pytest.fixture(scope="session")
def _stopped(tmp_path_factory, worker_id, small_data):
    def make(folder):
        make_small_project(folder, small_data)
        assert stop_at(folder, 5) == 75

    return made_once(tmp_path_factory, worker_id, "stopped", make)


@pytest.fixture
def stopped(_stopped, tmp_path):
    """A small project whose run was told to stop after its fifth step, and saved its state."""
    return copy_project(_stopped, tmp_path / "stopped")


@pytest.fixture(scope="session")
def _killed(tmp_path_factory, worker_id, small_data):
    def make(folder):
        make_small_project(folder, small_data)
        code = stop_at(folder, 11, "--checkpoint-steps", "3", number=signal.SIGKILL)
        assert code == -signal.SIGKILL

    return made_once(tmp_path_factory, worker_id, "killed", make)


@pytest.fixture
def killed(_killed, tmp_path):
    """A small project whose run was killed after its eleventh step; it saved every third."""
    return copy_project(_killed, tmp_path / "killed")
