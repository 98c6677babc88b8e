"""Fixtures of small projects with one run each, which are made once by the real command."""

import signal

import pytest

from tests.helpers.once import make_once
from tests.helpers.trainings import (
    RUN_OF_DEMO,
    copy_project,
    make_small_data,
    make_small_project,
    outcome,
    smt,
    stop_at,
)

STDERR = "stderr.txt"
"""File in a project: the stderr of its training."""


@pytest.fixture(scope="session")
def small_data(tmp_path_factory, worker_id):
    """Params of a small project, its data and their manifests."""
    return make_once(tmp_path_factory, worker_id, "small_data", make_small_data)


@pytest.fixture
def small_project(tmp_path, small_data):
    """A small project without a run."""
    return make_small_project(tmp_path / "project", small_data)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, worker_id, small_data):
    """A small project whose run is done, without interruptions, and has its stderr in STDERR."""

    def make(folder):
        make_small_project(folder, small_data)
        (folder / STDERR).write_text(smt(folder, "train", RUN_OF_DEMO).stderr)

    return make_once(tmp_path_factory, worker_id, "trained", make)


@pytest.fixture(scope="session")
def undisturbed(trained):
    """Weights and journal of the run of `trained`."""
    return outcome(trained)


@pytest.fixture(scope="session")
def undisturbed_pair(tmp_path_factory, worker_id, small_data):
    """Weights and journal of the same run on two ranks, without interruptions."""

    def make(folder):
        make_small_project(folder, small_data)
        smt(folder, "train", RUN_OF_DEMO, ranks=2)

    return outcome(make_once(tmp_path_factory, worker_id, "trained_pair", make))


@pytest.fixture(scope="session")
def _stopped(tmp_path_factory, worker_id, small_data):
    def make(folder):
        make_small_project(folder, small_data)
        assert stop_at(folder, 5) == 75

    return make_once(tmp_path_factory, worker_id, "stopped", make)


@pytest.fixture
def stopped(_stopped, tmp_path):
    """A small project whose run got SIGTERM after its fifth step, and saved its state."""
    return copy_project(_stopped, tmp_path / "stopped")


@pytest.fixture(scope="session")
def _killed(tmp_path_factory, worker_id, small_data):
    def make(folder):
        make_small_project(folder, small_data)
        code = stop_at(folder, 11, "--checkpoint-steps", "3", number=signal.SIGKILL)
        assert code == -signal.SIGKILL

    return make_once(tmp_path_factory, worker_id, "killed", make)


@pytest.fixture
def killed(_killed, tmp_path):
    """A small project whose run got SIGKILL after step 11, with checkpoints every 3 steps."""
    return copy_project(_killed, tmp_path / "killed")
