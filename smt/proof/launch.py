"""Starting the processes of a training and killing them: here, or wherever a launcher can."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import psutil

_FAREWELL = 60.0
"""Seconds that ranks have to end by themselves once one of them has ended."""


class Attempt(Protocol):
    """One start of a training, of one process or several."""

    def poll(self) -> list[int] | None:
        """Return the exit code of each rank, negative for a signal; None while any runs."""
        ...

    def kill(self, number: signal.Signals, rank: int | None) -> None:
        """Send a signal to one rank, or to all of them."""
        ...

    def kill_worker(self, rank: int) -> bool:
        """Kill a data worker of a rank by SIGKILL; return whether it had one."""
        ...

    def close(self) -> None:
        """End whatever of it still runs."""
        ...

    def said(self) -> str:
        """Return the last line that it wrote, an error if there was one."""
        ...


class Launcher(Protocol):
    """Starts `smt train` with some number of ranks. Local here; a cluster's fits in as well."""

    def start(self, arguments: Sequence[str], ranks: int, log: Path) -> Attempt:
        """Start `smt ARGUMENTS` on `ranks` ranks; what they write goes to files beside `log`."""
        ...


class LocalLauncher:
    """Starts the ranks as processes of this machine."""

    def start(self, arguments: Sequence[str], ranks: int, log: Path) -> "LocalAttempt":
        """Start `smt ARGUMENTS` on `ranks` ranks; rank r writes to LOG-rank-r.log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        logs = [log.with_name(f"{log.name}-rank{rank}.log") for rank in range(ranks)]
        port = str(_free_port())
        processes = []
        for rank, path in enumerate(logs):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
            with path.open("wb") as file:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "smt", *arguments],
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, **place},
                    )
                )
        return LocalAttempt(processes, logs)


class LocalAttempt:
    """Ranks that are processes of this machine; see `Attempt`."""

    def __init__(self, processes: list["subprocess.Popen[bytes]"], logs: list[Path]) -> None:
        self._processes, self._logs = processes, logs
        self._first_end: float | None = None

    def poll(self) -> list[int] | None:
        """Return the exit codes once all have ended; ranks that outstay the others are ended."""
        codes = [process.poll() for process in self._processes]
        ended = [code for code in codes if code is not None]
        if len(ended) == len(codes):
            return ended
        if ended:
            self._first_end = self._first_end or time.monotonic()
            late = time.monotonic() - self._first_end
            if late > _FAREWELL:
                self.kill(signal.SIGTERM if late < 2 * _FAREWELL else signal.SIGKILL, None)
        return None

    def kill(self, number: signal.Signals, rank: int | None) -> None:
        """Send a signal to one rank, or to all of them."""
        for process in self._processes if rank is None else [self._processes[rank]]:
            process.send_signal(number)

    def kill_worker(self, rank: int) -> bool:
        """Kill a data worker of a rank by SIGKILL; return whether it had one."""
        try:
            children = psutil.Process(self._processes[rank].pid).children()
            children[0].kill()
        except (psutil.NoSuchProcess, IndexError):
            return False
        return True

    def close(self) -> None:
        """End whatever of it still runs."""
        for process in self._processes:
            process.kill()
            process.wait()

    def said(self) -> str:
        """Return the last line that any rank wrote, an error if there was one."""
        lines = [line for path in self._logs for line in _lines(path)]
        errors = [line for line in lines if "error" in line.lower()]
        return (errors or lines or ["nothing"])[-1]


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(errors="replace").splitlines() if line.strip()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
