"""What several test modules share."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster, missing_packages, missing_programs

ROOT = Path(__file__).resolve().parent.parent
DEMO_DATA = ("imagenet1k", "imagenet22k", "class_map:imagenet22k_to_1k", "coco", "ade20k")

os.environ.setdefault("OMP_NUM_THREADS", "1")
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup what tests start would ignore it
os.environ.setdefault("SMT_SEND", "0")  # but for the tests of sending while training


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
                    subprocess.run(
                        [sys.executable, "-m", "smt", "--params", str(ROOT / "params"),
                         "--data", str(folder / "data"), "--results", str(folder / "results"),
                         "data", action, key, "--scale", "demo"], check=True,
                    )  # fmt: skip
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A real SLURM of two nodes, for tests marked xdist_group("cluster"): one worker has it.

    Without SLURM they are reported as not run; in continuous integration they fail.
    """
    missing = missing_programs()
    if missing:
        reason = (
            f"SLURM is not installed: {', '.join(missing)} missing "
            f"(apt-get install {' '.join(missing_packages())})"
        )
        if os.environ.get("CI") or os.environ.get("SMT_REQUIRE_SLURM"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("slurm"), tied=True) as cluster:
        yield cluster
