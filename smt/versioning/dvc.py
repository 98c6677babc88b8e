"""Calls of the commands `dvc`, `snakemake` and `smt`. Nothing here runs inside a job."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import yaml

from smt.errors import TrainingError, UserError
from smt.runs.atomic import replacing
from smt.runs.paths import Layout
from smt.versioning.credentials import require_no_credentials

_ENVIRONMENT = {"DVC_NO_ANALYTICS": "1"}

_LOCK = Path("dvc.lock")
_LOCK_BACKUP = Path(".dvc/tmp/dvc.lock.before")
_RWLOCK = Path(".dvc/tmp/rwlock")
"""DVC's JSON list of the paths that its processes read and write."""


def require_repository(layout: Layout) -> None:
    """Check that this folder is a DVC repository that holds the results and no credentials.

    Raises:
        UserError: naming what is wrong and how to mend it.
    """
    root = Path.cwd().resolve()
    if not (root / ".dvc" / "config").exists():
        raise UserError(
            f"{root} is not a DVC repository (no .dvc/config); run this in the root of a clone"
        )
    require_no_credentials(root / ".dvc" / "config")
    if layout.results.resolve() != root / "results":
        raise UserError(
            f"SMT_RESULTS={layout.results}: DVC records {root / 'results'}; leave --results and "
            "SMT_RESULTS away, or make ./results a link to that folder before the first run"
        )


def dvc(*arguments: str, quiet: bool = False) -> None:
    """Run DVC; if `quiet`, only its warnings and errors are printed.

    Raises:
        UserError: it failed, and has printed why. The next call continues where it stopped.
        ModuleNotFoundError: DVC is not installed.
    """
    if find_spec("dvc") is None:
        raise ModuleNotFoundError("No module named 'dvc'", name="dvc")
    command = [sys.executable, "-m", "dvc", *arguments]  # DVC's --quiet hides errors too
    stdout = subprocess.DEVNULL if quiet else None
    if subprocess.run(command, env={**os.environ, **_ENVIRONMENT}, stdout=stdout).returncode:
        raise UserError(
            f"dvc {arguments[0]} failed, see above; nothing is lost: run the same command again"
        )


def commit(stages: Sequence[str]) -> None:
    """Run `dvc commit`: record the outputs of stages without running them.

    DVC rewrites `dvc.lock` in place after each stage, and a kill truncates it. So a backup is kept
    until all stages are committed; if an earlier commit was killed, its backup is restored first.

    Raises:
        UserError: DVC failed, or `dvc.lock` is truncated and there is no backup of it.
    """
    _restore_lock()
    _remove_stale_rwlock()
    if _LOCK.exists() and _stages(_LOCK) is None:
        raise UserError(
            f"{_LOCK} is truncated, as a killed dvc leaves it; restore it: git checkout "
            f"{_LOCK}, or remove it if git does not have it; then run the same command again"
        )
    with replacing(_LOCK_BACKUP) as file:
        file.write(_LOCK.read_bytes() if _LOCK.exists() else b"")
    dvc("commit", "--force", *stages, quiet=True)
    _LOCK_BACKUP.unlink()


def _restore_lock() -> None:
    """Restore the backup that a killed commit has left, if the lock file is truncated."""
    if not (_LOCK_BACKUP.exists() and _LOCK.exists()):
        return
    before, after = _stages(_LOCK_BACKUP) or {}, _stages(_LOCK)
    if after is not None and before.keys() <= after.keys():
        return
    content = _LOCK_BACKUP.read_bytes()
    if not content:
        _LOCK.unlink()
        return
    with replacing(_LOCK) as file:
        file.write(content)


def _remove_stale_rwlock() -> None:
    """Remove DVC's list of paths in use if none of the processes in it is a running DVC."""
    if _RWLOCK.exists():
        # DVC's own lock, which it holds while it writes the file.
        with Path(f"{_RWLOCK}.lock").open("a") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            if not any(map(_is_dvc, _rwlock_pids())):
                _RWLOCK.unlink()


def _rwlock_pids() -> set[int]:
    """Return the process ids in DVC's list of paths in use; none if it is truncated."""
    try:
        content = json.loads(_RWLOCK.read_bytes())
    except ValueError:
        return set()
    readers = [reader for readers in content.get("read", {}).values() for reader in readers]
    return {process["pid"] for process in (*readers, *content.get("write", {}).values())}


def _is_dvc(pid: int) -> bool:
    """Return whether DVC runs under this id; DVC itself does not tell a dead or reused id."""
    try:
        process = psutil.Process(pid)
        names = [Path(part).name for part in process.cmdline()]  # python -m dvc, or bin/dvc
        return "dvc" in names and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _stages(lock: Path) -> dict[str, Any] | None:
    """Return the stages of a lock file, or None if it is truncated.

    A truncated YAML file may still be valid YAML. So its last line has to end with a newline, and
    each stage needs its `cmd`, which DVC writes first.
    """
    content = lock.read_bytes()
    try:
        stages = dict(yaml.load(content, yaml.CSafeLoader)["stages"])
    except (yaml.YAMLError, TypeError, KeyError, ValueError):
        return None
    is_complete = all("cmd" in (stage or ()) for stage in stages.values())
    return stages if is_complete and content.endswith(b"\n") else None


def snakemake(arguments: Sequence[str]) -> None:
    """Run Snakemake.

    Raises:
        TrainingError: a job has failed; Snakemake has printed which.
    """
    if subprocess.run([sys.executable, "-m", "snakemake", *arguments]).returncode:
        raise TrainingError(f"snakemake {' '.join(arguments)} failed, see above")


def smt(*arguments: str) -> None:
    """Run a command of this project without its output.

    Raises:
        UserError: it failed, and has printed why.
    """
    command = [sys.executable, "-m", "smt", *arguments]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"smt {' '.join(arguments)} failed, see above")
