"""A room of hosts on one machine."""

import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from testbed.processes import Processes

from .cgroups import Cgroups
from .errors import HostsError
from .host import Host, pid_below, wait
from .requirements import missing_requirement

_KEEPER = "room"
_NETWORK = "10.66.0"
"""Of the hosts' bridge, which nothing outside of the room sees."""


class Room:
    """Hosts with a network between them, which end together.

    Every host is in Linux namespaces of its own: network, mounts, process ids, name, IPC, control
    groups. Its root is that of the machine, or another Debian in the folder `root`, with what it
    writes kept apart. Folders in `shared` are the same on all hosts, as on a shared file system.
    /etc/hosts has all names, and Debian's line that gives the own name the address 127.0.1.1.

    The room ends with the process that starts it if it is `tied`, even if that is killed. Its few
    files are in `folder`; another process can use and stop it by them.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        shared: Sequence[Path],
        *,
        tied: bool,
        root: Path = Path("/"),
    ) -> None:
        self.folder = folder.resolve()
        self.shared = [path.resolve() for path in shared]
        self.root = root.resolve()
        # TERM rather than KILL: the keeper removes the control groups.
        self._keeper = Processes(self.folder / "room.json", tied=tied, signal="TERM")
        self.processes = Processes(self.folder / "hosts.json", tied=False)
        self.hosts = {
            name: Host(name, f"{_NETWORK}.{number}", self) for number, name in enumerate(names, 10)
        }

    def __enter__(self) -> "Room":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def start(self) -> None:
        """Make the room, and boot all hosts.

        Raises:
            HostsError: this machine does not allow it, or a host does not boot; then nothing is
                left running.
        """
        if missing := missing_requirement():
            raise HostsError(missing)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stop()
        self._group_file.write_text(f"testbed-{secrets.token_hex(4)}")
        try:
            self._begin_keeper()
            for host in self.hosts.values():
                host.boot()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all hosts with their processes, mounts, interfaces and control groups."""
        self._keeper.terminate(_KEEPER)
        if self.processes.names():
            self.processes.end(self.processes.names())

    @property
    def pid(self) -> int:
        """Process id of the room's process 1, as this machine sees it."""
        pid = pid_below(self._keeper.find(_KEEPER), 2)  # keeper -> unshare -> sh
        if pid is None:
            raise HostsError(f"no hosts run in {self.folder}")
        return pid

    @property
    def hosts_file(self) -> str:
        """The lines of /etc/hosts that all hosts have in common."""
        return "\n".join(f"{host.address} {host.name}" for host in self.hosts.values())

    @property
    def has_cgroups(self) -> bool:
        """Whether hosts have control groups: not on machines that have only their version 2."""
        return self._cgroups is not None

    def output(self, name: str) -> Path:
        """Output of a host's process 1, or of the keeper."""
        return self.folder / f"{name}.out"

    def make_groups(self, host: str) -> dict[str, Path]:
        """Make the control groups of a host; return the folder for each controller."""
        return {} if self._cgroups is None else self._cgroups.make(host)

    @property
    def _group_file(self) -> Path:
        return self.folder / "control-group"

    @property
    def _cgroups(self) -> Cgroups | None:
        return Cgroups.named(self._group_file.read_text())

    def _begin_keeper(self) -> None:
        tests = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
        self._keeper.begin(
            _KEEPER,
            [sys.executable, "-m", "testbed.hosts.keeper", self._group_file.read_text()],
            self.output(_KEEPER),
            {**os.environ, "PYTHONPATH": path},
        )
        wait(self._is_ready, self._failure)

    def _is_ready(self) -> bool:
        keeper = self._keeper.find(_KEEPER)
        if keeper is None:
            raise HostsError(self._failure())
        pid = pid_below(keeper, 2)
        return pid is not None and Path(f"/proc/{pid}/root/mnt/ready").exists()

    def _failure(self) -> str:
        lines = self.output(_KEEPER).read_text(errors="replace").strip().splitlines()
        return f"no room for hosts: {' | '.join(lines[-3:]) or 'no message'}"
