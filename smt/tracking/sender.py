"""The sender: one process per results folder that sends journals to MLflow while runs train.

It does what `smt sync` does, periodically, and no training waits for it. If the server is down,
slow or full, what is not sent yet is sent by its next sync, by the sender of the next attempt, or
by `smt sync`.
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

DEFAULT_PERIOD = 30.0
"""Seconds between syncs, unless SMT_SEND_SECONDS is set."""

MAX_BACKOFF = 300.0
"""Maximum seconds between syncs while MLflow does not answer."""

log = logging.getLogger(__name__)


def is_enabled() -> bool:
    """Return whether runs are sent while they train: unless SMT_SEND is 0, false, no or off."""
    return os.environ.get("SMT_SEND", "1").lower() not in ("0", "false", "no", "off")


def start(layout: Layout) -> subprocess.Popen[bytes] | None:
    """Start the sender of a scale's runs, which ends with this process.

    Returns None if one runs already, or if it cannot be started: then a warning is logged, and
    training goes on, for the journals are complete without it.
    """
    try:
        with _sender_lock(layout) as is_free:
            if not is_free:
                return None
        return _spawn(layout)
    except OSError as error:
        log.warning(
            "no metrics are sent to MLflow during this training (%s: %s); to send them later: "
            "smt sync --scale %s",
            error.filename or layout.sender_log, error.strerror, layout.scale,
        )  # fmt: skip
        return None


def stop(process: subprocess.Popen[bytes] | None, timeout: float = 10.0) -> None:
    """End the process that `start` has returned, by SIGKILL if it takes over `timeout` seconds."""
    if process is None:
        return
    process.terminate()
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _spawn(layout: Layout) -> subprocess.Popen[bytes]:
    layout.sender_log.parent.mkdir(parents=True, exist_ok=True)
    period = os.environ.get("SMT_SEND_SECONDS", str(DEFAULT_PERIOD))
    command = [
        sys.executable, "-m", "smt", "--params", str(default_params()),
        "--results", str(layout.results), "--data", str(layout.data),
        "sync", "--scale", layout.scale, "--watch", period, "--while-pid", str(os.getpid()),
    ]  # fmt: skip
    with layout.sender_log.open("ab") as file:
        # A session of its own: Ctrl-C must only reach the training, which first saves its state.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def watch(
    layout: Layout, sync_once: Callable[[], str | None], period: float, pid: int | None
) -> Iterator[str]:
    """Call `sync_once` every `period` seconds while the process `pid` runs; yield its messages.

    `sync_once` returns a message if it has sent anything. It is called a last time after the
    process has ended. If `pid` is None this goes on until the caller stops.
    """
    with _sender_lock(layout) as is_free:
        if not is_free:
            yield f"another sender runs in {layout.root}; this one is not needed"
            return
        process, pause, is_alive = _process(pid), period, pid is None or psutil.pid_exists(pid)
        while True:
            try:
                message = sync_once()
                pause = period
            except UserError as error:
                pause = min(2 * pause, MAX_BACKOFF)
                message = f"{error}; next try in {pause:.0f} s" if is_alive else str(error)
            if message:
                yield message
            if not is_alive:
                return
            is_alive = _sleep(pause, process)


def _process(pid: int | None) -> psutil.Process | None:
    try:
        return None if pid is None else psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _sleep(seconds: float, process: psutil.Process | None) -> bool:
    """Sleep until the process ends, at most so long; return whether it runs, or is None."""
    if process is None:
        time.sleep(seconds)
        return True
    try:
        process.wait(seconds)
    except psutil.TimeoutExpired:
        return True
    return False


@contextmanager
def _sender_lock(layout: Layout) -> Iterator[bool]:
    """Hold the lock of the sender of a scale's runs; yield False if another process holds it."""
    path: Path = layout.sender_lock
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
