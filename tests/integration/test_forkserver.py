"""Commands of a driver that are forks: they do what commands begun from nothing do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from smt import forkserver
from testbed.waiting import wait_for
from tests.helpers.project_copy import ProjectCopy

pytestmark = pytest.mark.xdist_group("forkserver")  # what they share is made once

EXPERIMENT = "imagenet1k_smt_tiny"
TRAIN = ("train", EXPERIMENT, "--scale", "smoke", "--no-send")
EVALUATE = ("evaluate", EXPERIMENT, "--scale", "smoke")
DATA = ("data", "make", "imagenet1k", "--scale", "smoke")
MANIFEST = ("data", "manifest", "imagenet1k", "--scale", "smoke")


@pytest.fixture(scope="module")
def server():
    """A server of this process, as a driver has it."""
    process = forkserver.start()
    address = os.environ.pop(forkserver.VARIABLE)
    yield process, address
    os.environ[forkserver.VARIABLE] = address
    forkserver.stop(process)
    assert not Path(address).parent.exists()


@pytest.fixture
def project(tmp_path):
    return ProjectCopy(tmp_path / "project")


def start(project, address, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "smt", *arguments], cwd=project.folder, text=True,
        env=project.environment(**{forkserver.VARIABLE: address}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(project, address, *arguments):
    """Run a command; return its exit code and what it printed on each of its streams."""
    process = start(project, address, *arguments)
    said, errors = process.communicate()
    return process.returncode, said, errors


def forks(server):
    """Return the processes of commands that the server has forked."""
    attendants = psutil.Process(server.pid).children()
    return [command for each in attendants for command in each.children(recursive=True)]


def weights(project):
    run = project.folder / "results/smoke/runs" / EXPERIMENT / "seed0"
    return (run / "model.safetensors").read_bytes()


def slow_down(project):
    """Let the run last long enough to be interrupted: as many epochs as it takes."""
    project.edit("scales.yaml", "schedule: {epochs: 2}", "schedule: {epochs: 2000}")


def await_journal(project, process):
    def has_begun():
        assert process.poll() is None, process.communicate()
        return any(path.stat().st_size for path in project.folder.rglob("journal.jsonl"))

    wait_for(has_begun)


def test_a_run_ends_with_the_same_bytes_as_one_begun_from_nothing(server, project, tmp_path):
    other = ProjectCopy(tmp_path / "other")
    for arguments in (DATA, MANIFEST, TRAIN, EVALUATE):
        code, said, errors = run(project, server[1], *arguments)
        assert code == 0, errors
        alone = other.smt(*arguments)
        assert (alone.returncode, alone.stdout) == (0, said), alone.stderr
    assert weights(project) == weights(other)


def test_a_mistake_has_the_exit_code_and_the_line_that_it_always_has(server, project):
    code, said, errors = run(project, server[1], "train", "imagenet1k_smt_tinny")
    alone = project.smt("train", "imagenet1k_smt_tinny")
    assert (code, said, errors) == (alone.returncode, alone.stdout, alone.stderr)
    assert code == 2 and errors.startswith("smt: error: ")


def test_a_signal_to_the_job_reaches_the_command(server, project):
    slow_down(project)
    for arguments in (DATA, MANIFEST):
        assert run(project, server[1], *arguments)[0] == 0
    process = start(project, server[1], *TRAIN)
    await_journal(project, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 75 and "state saved" in errors


def test_a_command_does_not_outlive_its_job(server, project):
    slow_down(project)
    for arguments in (DATA, MANIFEST):
        assert run(project, server[1], *arguments)[0] == 0
    process = start(project, server[1], *TRAIN)
    await_journal(project, process)
    (command,) = forks(server[0])
    process.kill()
    process.communicate()
    wait_for(lambda: not command.is_running())


def test_the_server_ends_with_its_driver_however_that_ends():
    program = (
        "import os; from smt import forkserver; server = forkserver.start();"
        "print(server.pid, os.environ[forkserver.VARIABLE], flush=True); input()"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid, address = driver.stdout.readline().split()
    driver.kill()
    driver.communicate()
    wait_for(lambda: not psutil.pid_exists(int(pid)))
    assert not Path(address).parent.exists()


@pytest.mark.parametrize("arguments", [("check",), ("tables",)])
def test_where_no_server_is_a_command_does_its_own_work(project, tmp_path, arguments):
    code, _, errors = run(project, str(tmp_path / "nobody"), *arguments)
    assert code == 0, errors
