"""Locks on a run: one process at a time trains it in its work folder, or evaluates it."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from smt.errors import TrainingError
from smt.runs.atomic import explained

LOCK = "lock"

_REMEDY = "give a folder that can be written, on a file system with locks: smt --results DIR"


@contextmanager
def exclusive(folder: Path, lock: str = LOCK, does: str = "trains") -> Iterator[None]:
    """Hold a folder's `lock` for this process. The kernel frees it when the process ends.

    Raises:
        TrainingError: another process holds it, and `does` that; the message names host and pid.
        UserError: the folder cannot be made or written.
    """
    file = acquire(folder, lock)
    if file is None:
        raise TrainingError(
            f"{folder}: {holder(folder / lock)} {does} this run already; wait for it, or "
            "stop it and start again"
        )
    with file:
        yield


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
            if _is_at(file, path):
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


def _is_at(file: TextIO, path: Path) -> bool:
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
