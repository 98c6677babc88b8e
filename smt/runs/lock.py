"""Locks on a run: one process at a time trains it in its work folder, or evaluates it."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smt.errors import TrainingError
from smt.runs.atomic import explained

LOCK = "lock"


@contextmanager
def exclusive(folder: Path, lock: str = LOCK, does: str = "trains") -> Iterator[None]:
    """Hold a folder's `lock` for this process. The kernel frees it when the process ends.

    Raises:
        TrainingError: another process holds it, and `does` that; the message names host and pid.
        UserError: the folder cannot be made or written.
    """
    with explained(folder, "give a folder that can be written: smt --results DIR"):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / lock).open("a+")
    with file:
        try:
            # lockf (POSIX) belongs to this process and ends with it. A flock would be inherited by
            # its data workers, which after kill -9 outlive it by seconds and would lock out the
            # next attempt.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise TrainingError(
                f"{folder}: {_holder(file.read())} {does} this run already; wait for it, or "
                "stop it and start again"
            ) from None
        file.truncate(0)
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        file.flush()
        yield


def _holder(content: str) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError):
        return "another process"
