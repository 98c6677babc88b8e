"""Commands as forks of a driver's server behave like commands in new processes."""

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

pytestmark = pytest.mark.xdist_group("forkserver")  # one server for all of them

EXPERIMENT = "imagenet1k_smt_tiny"
TRAIN = ("train", EXPERIMENT, "--scale", "smoke", "--no-send")
EVALUATE = ("evaluate", EXPERIMENT, "--scale", "smoke")
DATA = ("data", "make", "imagenet1k", "--scale", "smoke")
MANIFEST = ("data", "manifest", "imagenet1k", "--scale", "smoke")


@pytest.fixture(scope="module")
def server():
    """A fork server with this process as its driver."""
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
    """Run a command; return its exit code, stdout and stderr."""
    process = start(project, address, *arguments)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr


def new_process(project, *arguments):
    """Run a command without any fork server, not even that of the tests."""
    return project.run(sys.executable, "-m", "smt", *arguments)


def forks(server):
    """Return the processes of commands that run as forks of the server."""
    parents = psutil.Process(server.pid).children()
    return [command for parent in parents for command in parent.children(recursive=True)]


def weights(project):
    run = project.folder / "results/smoke/runs" / EXPERIMENT / "seed0"
    return (run / "model.safetensors").read_bytes()


def slow_down(project):
    """Give the run so many epochs that it is interrupted before it is done."""
    project.edit("scales.yaml", "schedule: {epochs: 2}", "schedule: {epochs: 2000}")


def await_journal(project, process):
    def has_started():
        assert process.poll() is None, process.communicate()
        return any(path.stat().st_size for path in project.folder.rglob("journal.jsonl"))

    wait_for(has_started)


def test_a_run_ends_with_the_same_bytes_as_in_new_processes(server, project, tmp_path):
    other = ProjectCopy(tmp_path / "other")
    for arguments in (DATA, MANIFEST, TRAIN, EVALUATE):
        code, stdout, stderr = run(project, server[1], *arguments)
        assert code == 0, stderr
        expected = new_process(other, *arguments)
        assert (expected.returncode, expected.stdout) == (0, stdout), expected.stderr
    assert weights(project) == weights(other)


def test_snakemake_starts_a_server_for_its_jobs_and_the_sender_of_metrics(project, tmp_path):
    slow_down(project)
    snakemake = project.start(
        "snakemake", "--profile", "local", EXPERIMENT, "--config", "scale=smoke",
        log=tmp_path / "log",
    )  # fmt: skip
    try:
        await_journal(project, snakemake)
        children = psutil.Process(snakemake.pid).children()
        (started,) = [child for child in children if "smt.forkserver" in child.cmdline()]
        (sender,) = [child for child in children if "--watch" in child.cmdline()]
        trainings = forks(started)
        assert trainings
    finally:
        snakemake.kill()
        snakemake.wait()
    ours = (started, sender, *trainings)
    wait_for(lambda: not any(process.is_running() for process in ours), lambda: str(ours))


def test_a_user_error_has_the_exit_code_and_the_line_of_a_new_process(server, project):
    code, stdout, stderr = run(project, server[1], "train", "imagenet1k_smt_tinny")
    expected = new_process(project, "train", "imagenet1k_smt_tinny")
    assert (code, stdout, stderr) == (expected.returncode, expected.stdout, expected.stderr)
    assert code == 2 and stderr.startswith("smt: error: ")


def test_a_signal_to_the_job_reaches_the_command(server, project):
    slow_down(project)
    for arguments in (DATA, MANIFEST):
        assert run(project, server[1], *arguments)[0] == 0
    process = start(project, server[1], *TRAIN)
    await_journal(project, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 75 and "state saved" in stderr


def test_a_command_ends_with_its_job(server, project):
    slow_down(project)
    for arguments in (DATA, MANIFEST):
        assert run(project, server[1], *arguments)[0] == 0
    process = start(project, server[1], *TRAIN)
    await_journal(project, process)
    (command,) = forks(server[0])
    process.kill()
    process.communicate()
    wait_for(lambda: not command.is_running())


def test_the_server_ends_with_a_killed_driver():
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
def test_a_command_runs_itself_without_a_server(project, tmp_path, arguments):
    code, _, stderr = run(project, str(tmp_path / "missing"), *arguments)
    assert code == 0, stderr
