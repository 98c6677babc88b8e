"""Starting processes, recording them, and ending them by their id."""

import json
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

_SAME_START = 0.02
"""Tolerance of a process's start time, in seconds."""


class Processes:
    """Long-running processes, by name, with their process ids and start times.

    They are recorded in a file, so that another process can end them after a crash. A process with
    a reused id has another start time, and is not killed. `tied` daemons get a `signal` when the
    process that starts them ends, by default the one that kills them.
    """

    def __init__(self, record: Path, *, tied: bool, signal: str = "KILL") -> None:
        self._record = record
        self._prefix = ("setpriv", "--pdeathsig", signal) if tied else ()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def begin(
        self, name: str, command: Sequence[str], output: Path, environment: Mapping[str, str]
    ) -> None:
        """Start a daemon in a session of its own, with its output in a file."""
        with output.open("ab") as file:
            child = subprocess.Popen(
                [*self._prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=output.parent,
                start_new_session=True,
            )
        self._children[name] = child
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(child.pid).create_time()
            self._write({**self._read(), name: (child.pid, started)})

    def names(self) -> list[str]:
        """Return the names of the recorded daemons, in the order of their start."""
        return list(self._read())

    def find(self, name: str) -> psutil.Process | None:
        """Return a daemon's process if it runs."""
        pid, started = self._read().get(name, (0, 0.0))
        try:
            process = psutil.Process(pid)
            if abs(process.create_time() - started) > _SAME_START:
                return None
        except psutil.NoSuchProcess:
            return None
        return process if _is_running(process) else None

    def terminate(self, name: str, timeout: float = 30) -> None:
        """Send SIGTERM to a daemon, and return when it has saved its state and ended."""
        process = self.find(name)
        if process is not None:
            process.terminate()
            _await_end([process], timeout)
        self.end([name])

    def end(self, names: Iterable[str]) -> None:
        """Kill daemons and their descendants, and return when they have ended."""
        names = set(names)
        running = [process for name in names if (process := self.find(name)) is not None]
        kill([member for process in running for member in process_tree(process)])
        for name in names & set(self._children):
            self._children.pop(name).poll()
        remaining = {name: entry for name, entry in self._read().items() if name not in names}
        self._write(remaining)

    def _read(self) -> dict[str, tuple[int, float]]:
        if not self._record.exists():
            return {}
        record = json.loads(self._record.read_text())
        return {name: (pid, started) for name, (pid, started) in record.items()}

    def _write(self, record: Mapping[str, tuple[int, float]]) -> None:
        temporary = self._record.with_suffix(".new")
        temporary.write_text(json.dumps(record))
        temporary.replace(self._record)


def kill(targets: Iterable[psutil.Process], timeout: float = 10) -> None:
    """Kill processes, and return when they have ended, or after `timeout` seconds."""
    targets = list(targets)
    for process in targets:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _await_end(targets, timeout)


def _await_end(processes: Iterable[psutil.Process], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while any(map(_is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)


def process_tree(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and its descendants; nothing if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def _is_running(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
