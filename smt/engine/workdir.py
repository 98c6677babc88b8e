"""The work folder of a run: one process tree at a time, and whether it is done."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smt.errors import TrainingError, UserError

LOCK = "lock"


@contextmanager
def exclusive(work_dir: Path) -> Iterator[None]:
    """Hold the work folder for this process; the lock goes with the process, however it ends.

    Raises:
        TrainingError: another process trains this run; the message names its host and pid.
        UserError: the folder cannot be made or written.
    """
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        file = (work_dir / LOCK).open("a+")
    except OSError as error:
        raise UserError(
            f"{work_dir}: cannot be written ({error.strerror}); give a folder that can: "
            "smt --results DIR, or SMT_RESULTS"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
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


def explain_os_error(error: OSError, work_dir: Path, step: int) -> TrainingError:
    """Return what to tell the user of a failed write during training."""
    where = error.filename or work_dir
    saved = f"the run stopped at step {step}; its last checkpoint is whole"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        cause = "the disk is full; make room"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        cause = "no permission to write there; mend that"
    else:
        cause = f"{error.strerror or error}; mend that"
    return TrainingError(f"{where}: {cause} and run the same command again ({saved})")
