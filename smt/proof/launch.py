"""Starting the processes of a training and killing them: here, or wherever a launcher can."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil

from smt.engine import requeue
from smt.engine.launch import free_port

PEER_FAILURE_TIMEOUT = 60.0
"""Seconds that ranks have to end by themselves once another has ended."""


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

    def place(self, rank: int) -> Mapping[str, str]:
        """Return where a rank runs: variables for the command of an event.

        SMT_PROOF_NODE and SMT_PROOF_PID there; with SLURM also SMT_PROOF_JOB and
        SMT_PROOF_JOB_STEP.
        """
        ...

    def close(self) -> None:
        """End whatever of it still runs."""
        ...

    def last_message(self) -> str:
        """Return the last line that it wrote, an error if there was one."""
        ...


class Launcher(Protocol):
    """Starts `smt train` with some number of ranks. Local here; SLURM's is in `smt.proof.slurm`."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of it: `launcher`, its name, and `nodes`, how many it uses."""
        ...

    def start(self, arguments: Sequence[str], ranks: int, log: Path) -> Attempt:
        """Start `smt ARGUMENTS` on `ranks` ranks; what they write goes to files beside `log`."""
        ...


class LocalLauncher:
    """Starts the ranks as processes of this machine."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of it."""
        return {"launcher": "local", "nodes": 1}

    def start(self, arguments: Sequence[str], ranks: int, log: Path) -> "LocalAttempt":
        """Start `smt ARGUMENTS` on `ranks` ranks; rank r writes to LOG-rank-r.log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        logs = [rank_log(log, rank) for rank in range(ranks)]
        port = str(free_port())
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
                        env={**without_job(os.environ), **place},
                    )
                )
        return LocalAttempt(processes, logs)


class LocalAttempt:
    """Ranks that are processes of this machine; see `Attempt`."""

    def __init__(self, processes: list["subprocess.Popen[bytes]"], logs: list[Path]) -> None:
        self._processes, self._logs = processes, logs
        self._peers = PeerTimeout()

    def poll(self) -> list[int] | None:
        """Return the exit codes once all have ended; ranks that go on too long are ended."""
        codes = [process.poll() for process in self._processes]
        ended = [code for code in codes if code is not None]
        if len(ended) == len(codes):
            return ended
        if ended and (number := self._peers.next_signal()) is not None:
            self.kill(number, None)
        return None

    def kill(self, number: signal.Signals, rank: int | None) -> None:
        """Send a signal to one rank, or to all of them."""
        for process in self._processes if rank is None else [self._processes[rank]]:
            process.send_signal(number)

    def kill_worker(self, rank: int) -> bool:
        """Kill a data worker of a rank by SIGKILL; return whether it had one."""
        return kill_child(self._processes[rank].pid)

    def place(self, rank: int) -> dict[str, str]:
        """Return where a rank runs: this node, and the process."""
        return {
            "SMT_PROOF_NODE": socket.gethostname(),
            "SMT_PROOF_PID": str(self._processes[rank].pid),
        }

    def close(self) -> None:
        """End whatever of it still runs."""
        for process in self._processes:
            process.kill()
            process.wait()

    def last_message(self) -> str:
        """Return the last line that any rank wrote, an error if there was one."""
        return last_message(self._logs)


class PeerTimeout:
    """Ends ranks that go on after one has ended: SIGTERM first, then SIGKILL."""

    def __init__(self) -> None:
        self._first_end: float | None = None
        self._sent = 0

    def next_signal(self) -> signal.Signals | None:
        """Return a signal when it is time to send it; ask while some ranks run and some do not."""
        self._first_end = self._first_end or time.monotonic()
        if time.monotonic() - self._first_end < (1 + self._sent) * PEER_FAILURE_TIMEOUT:
            return None
        self._sent += 1
        return signal.SIGTERM if self._sent == 1 else signal.SIGKILL


def without_job(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a training does not know of the job that a proof is in.

    Killed on purpose, it would ask for that job to be started again.
    """
    requests = (requeue.PROGRESS, requeue.RESUME)
    return {name: value for name, value in environment.items() if name not in requests}


def rank_log(log: Path, rank: int) -> Path:
    """Return the file that a rank writes to."""
    return log.with_name(f"{log.name}-rank{rank}.log")


def last_message(logs: Sequence[Path]) -> str:
    """Return the last line in the files, an error if there is one."""
    lines = [line for path in logs for line in lines_of(path)]
    return ([line for line in lines if is_error(line)] or lines or ["no message"])[-1]


def lines_of(path: Path) -> list[str]:
    """Return the lines of a log that are not empty; none if there is no log."""
    if not path.exists():
        return []
    return [line for line in path.read_text(errors="replace").splitlines() if line.strip()]


def is_error(line: str) -> bool:
    """Return whether a line of a log tells of an error."""
    return "error" in line.lower()


def kill_child(pid: int) -> bool:
    """Kill a child of a process, a data worker of a training; return whether it had one."""
    try:
        psutil.Process(pid).children()[0].kill()
    except (psutil.NoSuchProcess, IndexError):
        return False
    return True
