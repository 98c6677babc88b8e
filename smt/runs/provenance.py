"""Provenance of a run: code, packages, machine, data, parent and all attempts."""

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

from smt.errors import TrainingError, UserError
from smt.runs import heartbeat, record
from smt.runs.atomic import explained, replacing
from smt.runs.record import (
    FAILURE,
    PROVENANCE,
    Attempt,
    Failure,
    Git,
    Hardware,
    Provenance,
    Untracked,
)

LOG = "train.log"
"""Log of all attempts at a run."""

UNTRACKED = 100
"""Maximum of names of untracked files that are recorded; their count is recorded as well."""

_SLURM = {
    "slurm_job_id": "SLURM_JOB_ID",  # stays the same when a job is requeued
    "slurm_restart": "SLURM_RESTART_COUNT",
    "slurm_nodes": "SLURM_JOB_NODELIST",
}


def git_state(work_dir: Path) -> Git:
    """Return commit, whether the tree differs from it, the difference's SHA-256, untracked files.

    The difference itself is kept in `work_dir`, in the file that `diff_file` names. Outside a git
    checkout every value is None.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return Git(commit=None, dirty=None, diff_sha256=None, untracked=None)
    difference = _git("diff", "HEAD", "--binary") or b""
    untracked = (_git("ls-files", "--others", "--exclude-standard") or b"").decode().splitlines()
    dirty = bool(difference or untracked)
    digest = hashlib.sha256(difference).hexdigest() if dirty else None
    if digest is not None:
        with replacing(diff_file(work_dir, digest)) as file:
            file.write(difference)
    names = Untracked(count=len(untracked), first=sorted(untracked)[:UNTRACKED])
    return Git(
        commit=commit.decode().strip(),
        dirty=dirty,
        diff_sha256=digest,
        untracked=names if untracked else None,
    )


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
    installed = (distribution.metadata for distribution in importlib.metadata.distributions())
    return {metadata["Name"]: metadata["Version"] for metadata in installed if metadata["Name"]}


def hardware(gpus: list[str]) -> Hardware:
    """Return host, processor, cores, memory (bytes) and the names of the GPUs in use."""
    return Hardware(
        host=socket.gethostname(),
        system=platform.platform(),
        processor=processor(),
        cores=os.cpu_count(),
        memory_bytes=psutil.virtual_memory().total,
        gpus=gpus,
    )


def processor() -> str:
    """Return the name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def record_attempt(work_dir: Path, facts: dict[str, Any], attempt: dict[str, Any]) -> None:
    """Write the provenance of a run, or add one more attempt to it.

    `facts` are the parts that do not change between attempts; those of the first one stay, but for
    `source` where `attempt` lists `changes` that were allowed.
    """
    git = git_state(work_dir)
    attempt = {
        "started": time.time(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        **{key: getattr(git, key) for key in ("commit", "dirty", "diff_sha256")},
        **{key: os.environ.get(variable) for key, variable in _SLURM.items()},
        **attempt,
    }
    before = record.read_provenance(work_dir)
    if before is None:
        first = Provenance(
            **facts,
            git=git,
            packages=packages(),
            created=time.time(),
            attempts=[Attempt(**attempt)],
        )
        record.write(work_dir / PROVENANCE, first)
        return
    changes = {"source": facts["source"]} if attempt["changes"] else {}
    *ended, last = before.attempts
    if last.ended is None:
        last = last.model_copy(update={"ended": _last_heartbeat(work_dir, last.started)})
    values = {"attempts": [*ended, last, Attempt(**attempt)], **changes}
    record.write(work_dir / PROVENANCE, before.model_copy(update=values))


def _last_heartbeat(work_dir: Path, started: float) -> float:
    """Return the time of the last heartbeat of an attempt without an end (Unix seconds)."""
    beat = heartbeat.read(work_dir)
    return max(started, beat.time) if beat else started


def finish(work_dir: Path, at: float) -> Provenance:
    """Write down that the run ended `at` (Unix seconds) and return its whole provenance."""
    *before, last = require(work_dir).attempts
    return update(work_dir, attempts=[*before, last.model_copy(update={"ended": at})])


def gpu_seconds(attempts: Sequence[Attempt]) -> float:
    """Return the GPU-seconds of attempts that have ended, lost steps included.

    Each counts from its first step to its end, or to where it was last seen at work; 0 without
    GPUs.
    """
    spent = (
        ((attempt.ended or attempt.started) - attempt.started) * attempt.environment.gpus
        for attempt in attempts
        if attempt.environment is not None
    )
    total: float = sum(spent)
    return round(total, 3)


def update(work_dir: Path, **values: Any) -> Provenance:
    """Set values of a provenance that is there, and return it."""
    after = require(work_dir).model_copy(update=values)
    record.write(work_dir / PROVENANCE, after)
    return after


def require(work_dir: Path) -> Provenance:
    """Return the provenance of a run that has one."""
    provenance = record.read_provenance(work_dir)
    if provenance is None:
        raise UserError(
            f"{work_dir / PROVENANCE}: was removed while the run was at work; move {work_dir} "
            "aside and train the run again: smt train"
        )
    return provenance


def record_failure(work_dir: Path, message: str, step: int | None, exit_code: int) -> None:
    """Write the cause of a failed attempt for tables, children and other ranks.

    `step` is that of a training which going on would not mend: its own numbers are what is wrong.
    """
    failure = Failure(message=message, step=step, time=time.time(), exit_code=exit_code)
    record.write(work_dir / FAILURE, failure)


def forget_failure(work_dir: Path) -> None:
    """Remove the cause of the last attempt's failure: there is a new attempt."""
    path = work_dir / FAILURE
    with explained(path, "remove it and run the same command again", TrainingError):
        path.unlink(missing_ok=True)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values inside nested mappings, each with its keys joined by dots."""
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from flatten(inner, f"{prefix}.{key}" if prefix else key)
