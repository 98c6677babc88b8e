"""The folder that hosts share is full."""

import os
import shutil
import sys

import pytest

from testbed.fixtures import require_hosts, shared_folders
from testbed.hosts import Room
from testbed.waiting import PATIENCE, wait_for
from tests.helpers.hold import Holds
from tests.helpers.trainings import RUN_OF_DEMO, outcome

pytestmark = pytest.mark.xdist_group("hosts")

HOSTS = ("a", "b")


@pytest.fixture
def small_share(small_project, small_disk):
    """A small project whose results are on a file system of 8 MB."""
    shutil.move(small_project / "results", small_disk / "results")
    (small_project / "results").symlink_to(small_disk / "results")
    return small_disk


@pytest.fixture
def room(request, small_share, small_data, tmp_path):
    """Two hosts that have it in common."""
    require_hosts()
    shared = [tmp_path, small_data, *shared_folders(request.config, tmp_path)]
    with Room(tmp_path / "room", HOSTS, shared, tied=True) as room:
        yield room


def start(room, project, **more):
    """Start a training with a process on each host."""
    processes = []
    for rank, name in enumerate(HOSTS):
        environment = {
            **os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": room["a"].address, "MASTER_PORT": "29500",
            **more,
        }  # fmt: skip
        with (project / f"{name}.log").open("wb") as file:
            processes.append(room[name].start(
                sys.executable, "-m", "smt", "train", RUN_OF_DEMO, folder=project,
                env=environment, stdout=file, stderr=file,
            ))  # fmt: skip
    return processes


def outputs(project):
    return [(project / f"{name}.log").read_text() for name in HOSTS]


def exit_codes(processes):
    return [process.wait(PATIENCE) for process in processes]


@pytest.mark.slow
def test_a_full_shared_folder_ends_both_hosts_in_one_line_and_they_resume(
    room, small_project, small_share, undisturbed_pair, tmp_path
):
    holds = Holds(tmp_path / "holds")
    holds.hold(RUN_OF_DEMO)
    processes = start(room, small_project, **holds.environment())
    wait_for(lambda: holds.is_held(RUN_OF_DEMO), lambda: str(outputs(small_project)))
    filler = small_share / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(8 << 20))
    holds.let_go(RUN_OF_DEMO)
    assert exit_codes(processes) == [4, 4], outputs(small_project)
    assert "the disk is full" in outputs(small_project)[0].splitlines()[-1]
    assert not any("Traceback" in output for output in outputs(small_project))
    filler.unlink()
    assert exit_codes(start(room, small_project)) == [0, 0], outputs(small_project)
    assert outcome(small_project) == undisturbed_pair
