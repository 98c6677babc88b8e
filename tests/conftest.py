"""Fixtures of all tests, and what holds for every run of them: see README.md in this folder."""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest

from testbed import toy_workflow
from testbed.fixtures import cluster, hosts_cluster
from tests.helpers import ROOT, forkserver

__all__ = ["cluster", "hosts_cluster"]

pytest_plugins = (
    "tests.helpers.finished_fixtures",
    "tests.helpers.tracking_fixtures",
    "tests.helpers.trained_fixtures",
)

DEMO_DATA = ("imagenet1k", "imagenet22k", "class_map:imagenet22k_to_1k", "coco", "ade20k")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SMT_SEND", "0")  # but for the tests of sending while training
# What is started in the background of a shell, or under nohup, ignores these, and so would all
# that tests start, among it what they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

FORKED_JOBS = (
    "test_conditions.py", "test_every_kind.py", "test_job_failures.py", "test_local.py",
    "test_reattach.py", "test_resumable.py", "test_slurm.py",
)  # fmt: skip
"""Modules of the executor whose jobs start their Snakemake as a fork: it takes two CPU-seconds.

The others are about signals to the processes of a job, among which a fork is not. A test of these
modules about such signals starts its Snakemake by `Toy.start_process`.
"""

LAST_LINES = 20
"""Of each log that a failed test shows."""


# --- a run of pytest ------------------------------------------------------------------------------


def is_controller(config):
    return not hasattr(config, "workerinput")


def pytest_configure(config):
    if is_controller(config):
        folder = tempfile.mkdtemp(prefix="smt-tests-")
        os.environ[forkserver.FOLDER] = folder  # workers, and all that they start, inherit it
        os.environ[forkserver.CONTROLLER] = str(os.getpid())
    toy_workflow.launch = launch


def launch(module, *arguments, env, **settings):
    """Start a Snakemake of the executor's tests as a fork."""
    module_of_test = os.environ["PYTEST_CURRENT_TEST"].partition("::")[0]
    if Path(module_of_test).name in FORKED_JOBS:
        env = forkserver.with_forked_commands(env)
    return forkserver.start(module, *arguments, env=env, **settings)


def pytest_unconfigure(config):
    if is_controller(config):
        shutil.rmtree(os.environ.pop(forkserver.FOLDER), ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups after it
def pytest_collection_modifyitems(items):
    """Mark tests by where they lie and by what they ask for."""
    for item in items:
        if "started_mlflow" in item.fixturenames and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("mlflow"))  # one server for all of them
        on_slurm = {"cluster", "hosts_cluster"} & set(item.fixturenames)
        if Path(__file__).parent / "cluster" in item.path.parents or on_slurm:
            item.add_marker(pytest.mark.cluster)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Name what tests left running, end it, and fail for it."""
    if not is_controller(session.config):
        return
    forkserver.stop(Path(os.environ[forkserver.FOLDER]))
    left = []
    for process in psutil.process_iter(["environ"]):
        environment = process.info["environ"] or {}
        ours = environment.get(forkserver.FOLDER) == os.environ[forkserver.FOLDER]
        if ours and process.pid != os.getpid() and "PYTEST_CURRENT_TEST" in environment:
            left.append(f"{environment['PYTEST_CURRENT_TEST']} left process {process.pid}: "
                        f"{' '.join(process.cmdline())[:300]}")  # fmt: skip
            process.kill()
    session.config.stash[LEFT] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


LEFT = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(LEFT, []):
        terminalreporter.write_line(line, red=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show of a failed test the last lines of the logs that were written meanwhile."""
    report = yield
    if report.failed:
        folder = item.config._tmp_path_factory.getbasetemp()
        for path in sorted(folder.rglob("*.log")) + sorted(folder.rglob("*.out")):
            if path.is_file() and path.stat().st_mtime >= call.start - 1:
                lines = path.read_text(errors="replace").splitlines()[-LAST_LINES:]
                report.sections.append((str(path.relative_to(folder)), "\n".join(lines)))
    return report


# --- fixtures -------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _first_torch_settings():
    """The settings of torch that a training changes, as this process has begun with them."""
    import torch  # which reads OMP_NUM_THREADS as it is imported

    backends = {
        (backend, name): getattr(backend, name)
        for backend, name in (
            (torch.backends.cudnn, "benchmark"),
            (torch.backends.cudnn, "allow_tf32"),
            (torch.backends.cuda.matmul, "allow_tf32"),
        )
    }
    return torch.get_num_threads(), torch.get_default_dtype(), backends


@pytest.fixture(autouse=True)
def _same_torch_settings(_first_torch_settings):
    """Begin each test with the same settings of torch, whatever the test before has changed.

    Another number of threads gives other bits, and is left behind by what trains in this process.
    """
    import torch

    threads, dtype, backends = _first_torch_settings
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(False)
    for (backend, name), value in backends.items():
        setattr(backend, name, value)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 8 MB, so that a full disk is a full disk."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0777", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only_folder(tmp_path):
    """A real file system mounted read-only, which stops root as well."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        folder.chmod(0o555)
        if os.access(folder, os.W_OK):
            pytest.skip("root without mount: nothing here is read-only")
        yield folder
        folder.chmod(0o755)
        return
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory, worker_id):
    """The demo data and their manifests, made once by the real command for all workers."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared if worker_id == "master" else shared.parent) / "demo_data"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            for action in ("make", "manifest"):
                for key in DEMO_DATA:
                    done = forkserver.run(
                        "smt", "--params", str(ROOT / "params"), "--data", str(folder / "data"),
                        "--results", str(folder / "results"), "data", action, key, "--scale",
                        "demo", cwd=folder, env=dict(os.environ),
                    )  # fmt: skip
                    assert done.returncode == 0, done.stderr
            (folder / "done").touch()
    return folder
