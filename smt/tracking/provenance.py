"""Where a run comes from: code, packages, machine, data, parent, and every attempt at it."""

import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from smt.files import read_json, replacing, write_json

PROVENANCE = "provenance.json"
FAILURE = "failure.json"
DIFF = "git.diff"


def git_state(work_dir: Path) -> dict[str, Any]:
    """Return commit, whether the tree differs from it, and the SHA-256 of the difference.

    The difference itself is kept in `work_dir`. Outside a git checkout every value is None.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None, "diff_sha256": None}
    difference = _git("diff", "HEAD", "--binary") or b""
    untracked = _git("ls-files", "--others", "--exclude-standard") or b""
    dirty = bool(difference or untracked)
    if dirty:
        with replacing(work_dir / DIFF) as file:
            file.write(difference)
    return {
        "commit": commit.decode().strip(),
        "dirty": dirty,
        "diff_sha256": hashlib.sha256(difference).hexdigest() if dirty else None,
    }


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def packages() -> dict[str, str]:
    """Return name and version of every installed distribution."""
    return {
        distribution.metadata["Name"]: distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }


def hardware(gpus: list[str]) -> dict[str, Any]:
    """Return host, processor, cores, memory (bytes) and the names of the GPUs in use."""
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def record_attempt(work_dir: Path, facts: dict[str, Any], resumed_at_step: int) -> None:
    """Write the provenance of a run, or add one more attempt to what is there.

    `facts` are the parts that do not change between attempts; those of the first one stay.
    """
    known = read_json(work_dir / PROVENANCE)
    if known is None:
        known = {
            **facts,
            "git": git_state(work_dir),
            "packages": packages(),
            "created": time.time(),
            "attempts": [],
        }
    known["attempts"].append(
        {
            "started": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "resumed_at_step": resumed_at_step,
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        }
    )
    write_json(work_dir / PROVENANCE, known)
    (work_dir / FAILURE).unlink(missing_ok=True)


def record_failure(work_dir: Path, message: str, step: int | None) -> None:
    """Leave the cause of a failed attempt where tables and children find it."""
    write_json(work_dir / FAILURE, {"message": message, "step": step, "time": time.time()})


def failure(work_dir: Path) -> str | None:
    """Return the cause of the last attempt's failure, or None."""
    known = read_json(work_dir / FAILURE)
    return known["message"] if known else None
