"""Paths of a cluster's files, all in one folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import ClusterError

NODES = ("n1", "n2")

_SOCKET_PATH = 107
"""Maximum length of a socket's path on Linux, in bytes."""


@dataclass(frozen=True)
class Folder:
    """Paths in the folder of a cluster."""

    path: Path

    @property
    def marker(self) -> Path:
        """Marks the folder as a cluster's, which may be emptied."""
        return self.path / "is-a-cluster"

    @property
    def etc(self) -> Path:
        return self.path / "etc"

    @property
    def slurm_conf(self) -> Path:
        return self.etc / "slurm.conf"

    @property
    def task_prolog(self) -> Path:
        """Program that slurmd runs before each task."""
        return self.etc / "task-prolog"

    @property
    def munge_key(self) -> Path:
        return self.path / "munge" / "key"

    @property
    def munge_socket(self) -> Path:
        return self.path / "munge" / "socket"

    @property
    def database(self) -> Path:
        return self.path / "database"

    @property
    def database_socket(self) -> Path:
        return self.path / "database.socket"

    @property
    def processes(self) -> Path:
        """Record of daemons: names, process ids, start times."""
        return self.path / "processes.json"

    def gpu(self, number: int) -> Path:
        return self.path / f"gpu{number}"

    def pid(self, daemon: str) -> Path:
        """File with a daemon's process id, written when it listens."""
        return self.path / f"{daemon}.pid"

    def log(self, daemon: str) -> Path:
        """Log of a daemon of SLURM."""
        return self.path / "log" / f"{daemon}.log"

    def output(self, daemon: str) -> Path:
        """Output of a daemon."""
        return self.path / "log" / f"{daemon}.out"

    def make(self) -> None:
        """Make the folder, which must be new or empty, accessible for this user only.

        Raises:
            ClusterError: its path is too long for the sockets in it.
        """
        longest = self.path / NODES[0] / f"{NODES[0]}_1000000.4294967292"  # slurmstepd's
        if len(os.fsencode(longest)) > _SOCKET_PATH:
            raise ClusterError(
                f"{self.path}: too long a path for the sockets in it; "
                "choose a shorter one, as with: --folder /tmp/cluster"
            )
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self.marker.touch()
        for name in ("etc", "munge", "log", "state", *NODES):
            (self.path / name).mkdir(mode=0o700)
