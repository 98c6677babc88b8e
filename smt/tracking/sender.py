"""Sending while runs train: one process of a results folder, for which no training waits.

It reads journals and writes to MLflow as `smt sync` does, again and again. A server that is down,
slow or full costs it only time: what is not sent yet is sent by its next round, by the sender of
the next attempt, or by `smt sync`.
"""

import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from smt.errors import UserError
from smt.runs.paths import Layout, default_params

PERIOD = 30.0
"""Seconds from one round to the next, unless SMT_SEND_SECONDS says otherwise."""

LONGEST_PAUSE = 300.0
"""Seconds to which the pause grows while MLflow does not answer."""

log = logging.getLogger(__name__)


def is_wanted() -> bool:
    """Return whether runs are sent while they train: not if SMT_SEND says no."""
    return os.environ.get("SMT_SEND", "1").lower() not in ("0", "false", "no", "off")


def start(layout: Layout) -> subprocess.Popen[bytes] | None:
    """Start the sender of a scale's runs, which lasts as long as this process.

    Returns None, at once, if one is at work already. That none can be started is worth a warning:
    the journals hold everything.
    """
    try:
        with _elected(layout) as mine:
            if not mine:
                return None
        return _started(layout)
    except OSError as error:
        log.warning(
            "MLflow gets nothing while this trains (%s: %s); later: smt sync --scale %s",
            error.filename or layout.sender_log, error.strerror, layout.scale,
        )  # fmt: skip
        return None


def stop(process: subprocess.Popen[bytes] | None, patience: float = 10.0) -> None:
    """End a sender that `start` has returned; what it has not sent, a sync sends."""
    if process is None:
        return
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _started(layout: Layout) -> subprocess.Popen[bytes]:
    layout.sender_log.parent.mkdir(parents=True, exist_ok=True)
    period = os.environ.get("SMT_SEND_SECONDS", str(PERIOD))
    command = [
        sys.executable, "-m", "smt", "--params", str(default_params()),
        "--results", str(layout.results), "--data", str(layout.data),
        "sync", "--scale", layout.scale, "--watch", period, "--while-pid", str(os.getpid()),
    ]  # fmt: skip
    with layout.sender_log.open("ab") as file:
        # A session of its own: Ctrl-C is for the training, which ends in its own time.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def watch(
    layout: Layout, once: Callable[[], str | None], period: float, pid: int | None
) -> Iterator[str]:
    """Call `once` every `period` seconds, as long as the process `pid` lives; yield what to say.

    `once` sends what is new and returns a sentence if there was anything. It is called once more
    when the process has ended. With no `pid` this goes on until it is stopped from outside.
    """
    with _elected(layout) as mine:
        if not mine:
            yield f"another sender is at work in {layout.root}; this one is not needed"
            return
        process, pause, alive = _process(pid), period, pid is None or psutil.pid_exists(pid)
        while True:
            try:
                said = once()
                pause = period
            except UserError as error:
                pause = min(2 * pause, LONGEST_PAUSE)
                said = f"{error}; next try in {pause:.0f} s" if alive else str(error)
            if said:
                yield said
            if not alive:
                return
            alive = _outlasts(process, pause)


def _process(pid: int | None) -> psutil.Process | None:
    try:
        return None if pid is None else psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _outlasts(process: psutil.Process | None, seconds: float) -> bool:
    """Wait; return whether the process is still there. None stands for one that never ends."""
    if process is None:
        time.sleep(seconds)
        return True
    try:
        process.wait(seconds)
    except psutil.TimeoutExpired:
        return True
    return False


@contextmanager
def _elected(layout: Layout) -> Iterator[bool]:
    """Yield whether this process may be the sender of a scale's runs; it is until the body ends."""
    path: Path = layout.sender_lock
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
