"""Where a run comes from: code, packages, machine, data, parent, and every attempt at it."""

import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from smt.files import read_json, replacing, write_json

PROVENANCE = "provenance.json"
FAILURE = "failure.json"
DIFF = "git.diff"
LOG = "train.log"
"""What every attempt at a run had to say."""


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
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
    }


def processor() -> str:
    """Return the name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def record_attempt(work_dir: Path, facts: dict[str, Any], attempt: dict[str, Any]) -> None:
    """Write the provenance of a run, or add one more attempt to what is there.

    `facts` are the parts that do not change between attempts; those of the first one stay, but for
    `source` where `attempt` lists `changes` that were allowed.
    """
    git = git_state(work_dir)
    known = read_json(work_dir / PROVENANCE)
    if known is None:
        known = {
            **facts,
            "git": git,
            "packages": packages(),
            "created": time.time(),
            "attempts": [],
        }
    elif attempt.get("changes"):
        known["source"] = facts["source"]
    known["attempts"].append(
        {
            "started": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "commit": git["commit"],
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
            **attempt,
        }
    )
    write_json(work_dir / PROVENANCE, known)


def update(work_dir: Path, **values: Any) -> None:
    """Set values of a provenance that is there."""
    write_json(work_dir / PROVENANCE, {**read_json(work_dir / PROVENANCE), **values})


def record_failure(work_dir: Path, message: str, step: int | None, exit_code: int) -> None:
    """Leave the cause of a failed attempt where tables, children and other ranks find it.

    `step` is that of a training which going on would not mend: its own numbers are what is wrong.
    """
    content = {"message": message, "step": step, "time": time.time(), "exit_code": exit_code}
    write_json(work_dir / FAILURE, content)


def forget_failure(work_dir: Path) -> None:
    """Take back the cause of the last attempt's failure: there is a new attempt."""
    (work_dir / FAILURE).unlink(missing_ok=True)


def failure(work_dir: Path) -> str | None:
    """Return the cause of the last attempt's failure, or None."""
    known = read_json(work_dir / FAILURE)
    return known["message"] if known else None


def is_final(work_dir: Path) -> bool:
    """Return whether the last attempt failed in a way that going on would repeat."""
    known = read_json(work_dir / FAILURE)
    return known is not None and known["step"] is not None


def failure_code(work_dir: Path) -> int | None:
    """Return the exit code of the last attempt's failure, or None."""
    known = read_json(work_dir / FAILURE)
    return known["exit_code"] if known else None


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values inside nested mappings, each with its keys joined by dots."""
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from flatten(inner, f"{prefix}.{key}" if prefix else key)
