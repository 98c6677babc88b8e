"""Processes that are started, written down, and ended by their id: never another's."""

import json
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from .folder import NODES, Folder

_SAME_START = 0.02
"""Seconds by which two readings of a process's start may differ."""


class Processes:
    """Daemons of one cluster: each a name, a process id and the time at which it started.

    They are recorded in a file, so that whoever comes after a crash can end them. A process that
    was given the same id since then has another start time, and is left alone. If they are `tied`,
    they end with the process that starts them.
    """

    def __init__(self, record: Path, *, tied: bool) -> None:
        self._record = record
        self._prefix = ("setpriv", "--pdeathsig", "KILL") if tied else ()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def begin(
        self, name: str, command: Sequence[str], output: Path, environment: Mapping[str, str]
    ) -> None:
        """Start a daemon in the foreground of a session of its own, printing to `output`."""
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
        """Return the names of all that were started and not ended, in this order."""
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
        return process if _runs(process) else None

    def ask_to_end(self, name: str, timeout: float = 30) -> None:
        """Send SIGTERM to a daemon, and return when it has saved its state and is gone."""
        process = self.find(name)
        if process is not None:
            process.terminate()
            _await_end([process], timeout)
        self.end([name])

    def end(self, names: Iterable[str]) -> None:
        """Kill daemons with their children, and return when they are gone."""
        names = set(names)
        running = [process for name in names if (process := self.find(name)) is not None]
        kill([each for process in running for each in _family(process)])
        for name in names & set(self._children):
            self._children.pop(name).poll()
        self._write({name: each for name, each in self._read().items() if name not in names})

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
    """Kill processes, and return when they are gone or `timeout` seconds are over."""
    targets = list(targets)
    for process in targets:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _await_end(targets, timeout)


def _await_end(processes: Iterable[psutil.Process], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while any(map(_runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)


def of_nodes(folder: Folder, node: str | None = None) -> list[psutil.Process]:
    """Return slurmd, slurmstepd and jobs' processes of a cluster, or of one node of it."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["name", "environ"]):
        is_step = process.info["name"] == "slurmstepd"
        its_node = _node_by_log(process, folder) if is_step else _node_told(process, folder)
        if its_node is not None and node in (None, its_node):
            found.update((each.pid, each) for each in _family(process))
    return list(found.values())


def _node_told(process: psutil.Process, folder: Folder) -> str | None:
    """Return the node of which slurmd told a process, as it does not tell a user's shell."""
    environment = process.info["environ"] or {}
    if environment.get("SLURM_CONF") != str(folder.slurm_conf):
        return None
    return environment.get("SLURMD_NODENAME")


def _node_by_log(process: psutil.Process, folder: Folder) -> str | None:
    """Return the node of a slurmstepd, which writes its title over its environment."""
    with suppress(psutil.Error):
        opened = {each.path for each in process.open_files()}
        return next((node for node in NODES if str(folder.log(node)) in opened), None)
    return None


def _family(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
