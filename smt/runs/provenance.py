"""Where a run comes from: code, packages, machine, data, parent, and every attempt at it."""

import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from smt.runs import heartbeat
from smt.runs.atomic import read_json, replacing, write_json

PROVENANCE = "provenance.json"
FAILURE = "failure.json"
LOG = "train.log"
"""What every attempt at a run had to say."""

UNTRACKED = 100
"""Names of files that git does not know which are kept; how many there are is kept beside them."""

_SLURM = {
    "slurm_job_id": "SLURM_JOB_ID",  # stays the same when a job is requeued
    "slurm_restart": "SLURM_RESTART_COUNT",
    "slurm_nodes": "SLURM_JOB_NODELIST",
}


def git_state(work_dir: Path) -> dict[str, Any]:
    """Return commit, whether the tree differs from it, the difference's SHA-256, untracked files.

    The difference itself is kept in `work_dir`, in the file that `diff_file` names. Outside a git
    checkout every value is None.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None, "diff_sha256": None, "untracked": None}
    difference = _git("diff", "HEAD", "--binary") or b""
    untracked = (_git("ls-files", "--others", "--exclude-standard") or b"").decode().splitlines()
    dirty = bool(difference or untracked)
    digest = hashlib.sha256(difference).hexdigest() if dirty else None
    if digest is not None:
        with replacing(diff_file(work_dir, digest)) as file:
            file.write(difference)
    names = {"count": len(untracked), "first": sorted(untracked)[:UNTRACKED]}
    return {
        "commit": commit.decode().strip(),
        "dirty": dirty,
        "diff_sha256": digest,
        "untracked": names if untracked else None,
    }


def diff_file(work_dir: Path, digest: str) -> Path:
    """Return where the difference of that SHA-256 from a commit is kept."""
    return work_dir / f"git-{digest[:12]}.diff"


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def packages() -> dict[str, str]:
    """Return name and version of every installed distribution."""
    found = (distribution.metadata for distribution in importlib.metadata.distributions())
    return {metadata["Name"]: metadata["Version"] for metadata in found if metadata["Name"]}


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
    for last in known["attempts"][-1:]:
        last.setdefault("ended", _last_sign_of_life(work_dir, last["started"]))
    known["attempts"].append(
        {
            "started": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **{key: git[key] for key in ("commit", "dirty", "diff_sha256")},
            **{key: os.environ.get(variable) for key, variable in _SLURM.items()},
            **attempt,
        }
    )
    write_json(work_dir / PROVENANCE, known)


def _last_sign_of_life(work_dir: Path, started: float) -> float:
    """Return when an attempt that left no end was last seen at work (Unix seconds)."""
    beat = heartbeat.read(work_dir)
    return max(started, beat.time) if beat else started


def finish(work_dir: Path, at: float) -> dict[str, Any]:
    """Write down that the run ended `at` (Unix seconds) and return its whole provenance."""
    known: dict[str, Any] = read_json(work_dir / PROVENANCE)
    known["attempts"][-1]["ended"] = at
    write_json(work_dir / PROVENANCE, known)
    return known


def gpu_seconds(attempts: Sequence[Mapping[str, Any]]) -> float:
    """Return the GPU-seconds of attempts that have ended, with what was done in them and lost.

    Each counts from its first step to its end, or to where it was last seen at work; 0 without
    GPUs.
    """
    ends = [each.get("ended", each["started"]) for each in attempts]
    spent = (
        (end - each["started"]) * _gpus(each["environment"])
        for each, end in zip(attempts, ends, strict=True)
    )
    total: float = sum(spent)
    return round(total, 3)


def _gpus(environment: Mapping[str, Any]) -> int:
    return int(environment["world_size"]) if environment["device"] == "cuda" else 0


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
