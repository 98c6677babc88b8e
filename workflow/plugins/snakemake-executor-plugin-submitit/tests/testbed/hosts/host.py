"""One host of a room: boot, commands, power cuts, its cable."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil

from testbed.processes import Processes

from .errors import HostsError

_INIT = Path(__file__).with_name("init.sh")
BOOT_TIMEOUT = 300.0
"""Seconds that a room or a host may take to start, on a busy machine."""

_ENTER = """
for group in /sys/fs/cgroup/*/cgroup.procs; do [ ! -e "$group" ] || echo $$ > "$group"; done
cd "$0"
exec "$@"
"""
"""Entering namespaces does not enter a control group: that is the process's own act."""


class Surroundings(Protocol):
    """What a host needs of its room."""

    processes: Processes
    shared: Sequence[Path]
    root: Path

    @property
    def pid(self) -> int: ...
    @property
    def hosts_file(self) -> str: ...
    def output(self, name: str) -> Path: ...
    def make_groups(self, host: str) -> dict[str, Path]: ...


class Host:
    """A computer of its own, but for the kernel: network, root, processes, name, /tmp, /dev/shm.

    What it writes outside of shared folders survives a power cut, and ends with the room.
    """

    def __init__(self, name: str, address: str, room: Surroundings) -> None:
        self.name, self.address = name, address
        self._room = room
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """Process id of its process 1, as this machine sees it.

        Raises:
            HostsError: it is off.
        """
        if self._pid is None or not psutil.pid_exists(self._pid):
            self._pid = self._find_pid()
        if self._pid is None:
            raise HostsError(f"host {self.name} is off")
        return self._pid

    @property
    def is_on(self) -> bool:
        return self._find_pid() is not None

    def boot(self) -> None:
        """Switch it on; return when it can run commands.

        Raises:
            HostsError: it does not boot; with the last line that it printed.
        """
        root = self._make_root()
        groups = self._room.make_groups(self.name)
        join = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups.values())
        own_hosts = f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n{self._room.hosts_file}"
        self._room.processes.begin(
            self.name,
            ["nsenter", "-t", str(self._room.pid), "-m", "-n", "-p", "sh", "-e", "-c",
             f'{join}exec "$@"', "sh", "unshare", "-m", "-n", "-p", "-u", "-i", "-C", "--fork",
             "--kill-child", "--propagation", "private", "sh", "-e", str(_INIT), self.name, root,
             " ".join(groups), own_hosts,
             *map(str, self._room.shared)],
            self._room.output(self.name), os.environ,
        )  # fmt: skip
        wait(self._is_booted, lambda: self._failure("does not boot"))
        self._connect()

    def _make_root(self) -> str:
        """Mount the overlay that is its root, where that is not left from before a power cut."""
        folder = f"/mnt/{self.name}"
        layers = f"upperdir={folder}/upper,workdir={folder}/work,lowerdir={self._room.root}"
        self._in_room(
            "-m",
            f"mkdir -p {folder}/upper {folder}/work {folder}/root; "
            f"mountpoint -q {folder}/root || "
            f"mount -t overlay -o {layers} {self.name} {folder}/root",
        )
        return f"{folder}/root"

    def _connect(self) -> None:
        """Lay the cable from eth0 to the bridge; an earlier one may still be going away."""
        cable = f"v-{self.name}"
        self._in_room(
            "-n",
            f"ip link delete {cable} 2>/dev/null || :; "
            f"ip link add name {cable} type veth peer name eth0 netns {self.pid}; "
            f"ip link set {cable} master br0 up",
        )
        self.run("sh", "-e", "-c", "ip link set lo up; ip link set eth0 up; "
                 f"ip address add {self.address}/24 dev eth0")  # fmt: skip

    def power_cut(self) -> None:
        """End it at once. No host hears of it: connections are not closed."""
        self.unplug()
        process = psutil.Process(self.pid)
        process.kill()
        wait(lambda: not process.is_running(), lambda: f"host {self.name} does not end")
        self._room.processes.end([self.name])
        self._pid = None

    def unplug(self) -> None:
        """Take its cable out: it runs on, and no host reaches it."""
        self._in_room("-n", f"ip link set v-{self.name} down")

    def plug(self) -> None:
        """Put its cable in again."""
        self._in_room("-n", f"ip link set v-{self.name} up")

    def command(self, *command: str, folder: Path | str = "/") -> list[str]:
        """Return the arguments of a process that runs `command` here, in `folder`."""
        return ["nsenter", "-t", str(self.pid), "-a", "sh", "-c", _ENTER, str(folder), *command]

    def run(
        self,
        *command: str,
        check: bool = True,
        folder: Path | str = "/",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here; with `check`, raise a HostsError if it fails."""
        process = subprocess.run(
            self.command(*command, folder=folder), env=environment, capture_output=True, text=True
        )
        if check and process.returncode:
            message = (process.stderr or process.stdout).strip() or "no message"
            raise HostsError(
                f"{self.name}: {' '.join(command)}: exit code {process.returncode}; {message}"
            )
        return process

    def start(
        self, *command: str, folder: Path | str = "/", **options: Any
    ) -> "subprocess.Popen[bytes]":
        """Start a command here; `options` are those of Popen. End it by `kill`."""
        return subprocess.Popen(self.command(*command, folder=folder), **options)

    def kill(self, process: "subprocess.Popen[bytes]", number: int) -> None:
        """Send a signal to what `start` has started: `process` itself waits outside of the host."""
        for child in psutil.Process(process.pid).children():
            child.send_signal(number)

    def _in_room(self, namespace: str, script: str) -> None:
        """Run a shell script in the room's mounts (-m) or network (-n)."""
        command = ["nsenter", "-t", str(self._room.pid), namespace, "sh", "-e", "-c", script]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            raise HostsError(f"host {self.name}: {script}: {process.stderr.strip()}")

    def _find_pid(self) -> int | None:
        return pid_below(self._room.processes.find(self.name), 2)  # nsenter -> unshare -> init.sh

    def _is_booted(self) -> bool:
        if self._room.processes.find(self.name) is None:
            raise HostsError(self._failure("does not boot"))
        pid = self._find_pid()
        # What is /run to the process: the room's until it has a root of its own.
        return pid is not None and Path(f"/proc/{pid}/root/run/booted").exists()

    def _failure(self, what: str) -> str:
        lines = self._room.output(self.name).read_text(errors="replace").strip().splitlines()
        return f"host {self.name} {what}: {' | '.join(lines[-3:]) or 'no message'}"


def pid_below(process: psutil.Process | None, generations: int) -> int | None:
    """Return the process id of the only descendant so many generations below, if it exists."""
    try:
        for _ in range(generations):
            if process is None:
                return None
            process = next(iter(process.children()), None)
    except psutil.NoSuchProcess:
        return None
    return None if process is None else process.pid


def wait(condition: Callable[[], bool], failure: Callable[[], str]) -> None:
    """Wait until a condition is true; raise a HostsError with `failure()` if it takes too long."""
    deadline = time.monotonic() + BOOT_TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise HostsError(failure())
        time.sleep(0.01)
