"""DVC and Snakemake, called as a user types them. Nothing here runs inside a job."""

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
from smt.versioning.secrets import require_none

_ENVIRONMENT = {"DVC_NO_ANALYTICS": "1"}

_LOCK = Path("dvc.lock")
_BEFORE = Path(".dvc/tmp/dvc.lock.before")
_PATHS_IN_USE = Path(".dvc/tmp/rwlock")


def require_repository(layout: Layout) -> None:
    """Raise a UserError unless DVC's repository is here, the results lie in it, and no secret."""
    here = Path.cwd().resolve()
    if not (here / ".dvc" / "config").exists():
        raise UserError(
            f"{here} is no DVC repository (no .dvc/config); run this in the root of a clone"
        )
    require_none(here / ".dvc" / "config")
    if layout.results.resolve() != here / "results":
        raise UserError(
            f"SMT_RESULTS={layout.results}: DVC records {here / 'results'}; leave --results and "
            "SMT_RESULTS away, or make ./results a link to that folder's disk before the first run"
        )


def dvc(*arguments: str, quiet: bool = False) -> None:
    """Run DVC; if `quiet`, only its warnings and errors are seen.

    Raises:
        UserError: it failed; it has said why. What it had done by then it need not do again.
        ModuleNotFoundError: DVC is not installed.
    """
    if find_spec("dvc") is None:
        raise ModuleNotFoundError("No module named 'dvc'", name="dvc")
    command = [sys.executable, "-m", "dvc", *arguments]  # its own --quiet hides errors too
    stdout = subprocess.DEVNULL if quiet else None
    done = subprocess.run(command, env={**os.environ, **_ENVIRONMENT}, stdout=stdout)
    if done.returncode:
        raise UserError(
            f"dvc {arguments[0]} failed, see above; nothing is lost: run the same command again"
        )


def commit(stages: Sequence[str]) -> None:
    """Take in what stages have made as it is, without running them.

    DVC writes `dvc.lock` in place, anew for each stage, and a kill leaves the half of it. So it is
    kept until all are in, and where an earlier commit left no whole one, that goes on from there.

    Raises:
        UserError: DVC failed, or a `dvc.lock` that others have written is not a whole one.
    """
    _restore_lock()
    _free_paths()
    if _LOCK.exists() and _stages(_LOCK) is None:
        raise UserError(
            f"{_LOCK} is half written, as a killed dvc leaves it; bring it back: git checkout "
            f"{_LOCK}, or remove it if git has none; then run the same command again"
        )
    _BEFORE.parent.mkdir(parents=True, exist_ok=True)
    with replacing(_BEFORE) as file:
        file.write(_LOCK.read_bytes() if _LOCK.exists() else b"")
    dvc("commit", "--force", *stages, quiet=True)
    _BEFORE.unlink()


def _restore_lock() -> None:
    """Put back what stood before a commit that was killed, if that has left no whole lock file."""
    if not (_BEFORE.exists() and _LOCK.exists()):
        return
    before, now = _stages(_BEFORE) or {}, _stages(_LOCK)
    if now is not None and before.keys() <= now.keys():
        return
    content = _BEFORE.read_bytes()
    if not content:
        _LOCK.unlink()
        return
    with replacing(_LOCK) as file:
        file.write(content)


def _free_paths() -> None:
    """Remove DVC's list of paths in use where no DVC runs that is in it."""
    if _PATHS_IN_USE.exists():
        # DVC's own lock, which it holds while it writes the file.
        with Path(f"{_PATHS_IN_USE}.lock").open("a") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            if not any(map(_is_dvc, _users(_PATHS_IN_USE))):
                _PATHS_IN_USE.unlink()


def _users(paths_in_use: Path) -> set[int]:
    """Return the process ids in DVC's list of paths in use; none where half of it was written."""
    try:
        content = json.loads(paths_in_use.read_bytes())
    except ValueError:
        return set()
    readers = [user for users in content.get("read", {}).values() for user in users]
    return {user["pid"] for user in (*readers, *content.get("write", {}).values())}


def _is_dvc(pid: int) -> bool:
    """Whether a DVC runs under this id. DVC takes a dead one, or any other process, for itself."""
    try:
        process = psutil.Process(pid)
        names = [Path(part).name for part in process.cmdline()]  # python -m dvc, or bin/dvc
        return "dvc" in names and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _stages(lock: Path) -> dict[str, Any] | None:
    """Return the stages of a lock file, or None where it is not a whole one.

    Half a YAML file may well be one, so its last line has to end, and each stage has its command,
    which comes first.
    """
    content = lock.read_bytes()
    try:
        stages = dict(yaml.load(content, yaml.CSafeLoader)["stages"])
    except (yaml.YAMLError, TypeError, KeyError, ValueError):
        return None
    is_whole = all("cmd" in (stage or ()) for stage in stages.values())
    return stages if is_whole and content.endswith(b"\n") else None


def snakemake(arguments: Sequence[str]) -> None:
    """Run Snakemake.

    Raises:
        TrainingError: a job has failed; Snakemake has said which.
    """
    done = subprocess.run([sys.executable, "-m", "snakemake", *arguments])
    if done.returncode:
        raise TrainingError(f"snakemake {' '.join(arguments)} failed, see above")


def smt(*arguments: str) -> None:
    """Run a command of this project, in silence.

    Raises:
        UserError: it failed; it has said why.
    """
    command = [sys.executable, "-m", "smt", *arguments]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"smt {' '.join(arguments)} failed, see above")
