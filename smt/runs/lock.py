"""Locks on a run: one process at a time trains it in its work folder, or evaluates it."""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO, TypeVar

from smt.errors import TrainingError
from smt.runs.atomic import explained

log = logging.getLogger(__name__)

T = TypeVar("T")

LOCK = "lock"

POLL_INTERVAL = 1.0
"""Seconds between two tries."""

JOB_PATIENCE = 1800.0
"""Seconds for which a job waits for a lock, unless the caller knows better."""

_REMEDY = "give a folder that can be written, on a file system with locks: smt --results DIR"


@contextmanager
def exclusive(folder: Path, lock: str = LOCK, does: str = "trains") -> Iterator[None]:
    """Hold a folder's `lock` for this process. The kernel frees it when the process ends.

    A job waits for it: SLURM may have lost the host of its first attempt, which still runs.

    Raises:
        TrainingError: another process holds it, and `does` that; the message names host and pid.
        UserError: the folder cannot be made or written.
    """
    file = wait_in_job(lambda: acquire(folder, lock), lambda: holder(folder / lock), folder)
    if file is None:
        raise TrainingError(
            f"{folder}: {holder(folder / lock)} {does} this run already; wait for it, or "
            "stop it and start again"
        )
    with file:
        yield


def is_job() -> bool:
    """Return whether this process is part of a job of SLURM, which may start it once more."""
    return "SLURM_JOB_ID" in os.environ


def wait_in_job(attempt: Callable[[], T | None], holder: Callable[[], str], path: Path) -> T | None:
    """Return what `attempt` returns; in a job, try until that is not None, JOB_PATIENCE at most.

    `holder` and `path` are for the log: for whom, and for what, it waits.
    """
    deadline = time.monotonic() + (JOB_PATIENCE if is_job() else 0.0)
    result = attempt()
    if result is None and is_job():
        log.warning("%s: waits for %s, %.0f min at most", path, holder(), JOB_PATIENCE / 60)
    while result is None and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL)
        result = attempt()
    return result


def acquire(folder: Path, lock: str = LOCK) -> TextIO | None:
    """Return the file `lock` of a folder, locked until it is closed; None if another holds it.

    A process must not open the file again while it holds the lock: closing it frees a POSIX lock.

    Raises:
        UserError: the folder cannot be made or written, or its file system has no locks.
    """
    path = folder / lock
    with explained(folder, _REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            file = path.open("a+", encoding="utf-8")
            if not _try(file):
                file.close()
                return None
            if is_at(file, path):
                break
            file.close()  # removed since it was opened: whoever comes next locks another file
        _write_holder(file)
    return file


def _try(file: TextIO) -> bool:
    try:
        # lockf (POSIX) belongs to this process and ends with it. A flock would be inherited by its
        # data workers, which after kill -9 outlive it by seconds and would lock out the next
        # attempt.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_at(file: IO[Any], path: Path) -> bool:
    """Return whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(file: TextIO) -> None:
    file.truncate(0)
    json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
    file.flush()
    os.fsync(file.fileno())  # for readers on other hosts: NFS keeps it here while the file is open


def holder(path: Path) -> str:
    """Return who holds a lock, or held it last: its process and host, in a phrase."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return f"process {content['pid']} on {content['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
