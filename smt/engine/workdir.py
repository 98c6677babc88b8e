"""The work folder of a run: one process tree at a time, and whether it is done."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smt.errors import TrainingError
from smt.files import explained

LOCK = "lock"


@contextmanager
def exclusive(work_dir: Path) -> Iterator[None]:
    """Hold the work folder for this process; the lock goes with the process, however it ends.

    Raises:
        TrainingError: another process trains this run; the message names its host and pid.
        UserError: the folder cannot be made or written.
    """
    with explained(work_dir, "give a folder that can be written: smt --results DIR"):
        work_dir.mkdir(parents=True, exist_ok=True)
        file = (work_dir / LOCK).open("a+")
    with file:
        try:
            # Of this process alone: flock would pass to its data workers, which outlive it by some
            # seconds after kill -9, and would keep the next attempt out.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise TrainingError(
                f"{work_dir}: {_holder(file.read())} trains this run already; wait for it, or "
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
