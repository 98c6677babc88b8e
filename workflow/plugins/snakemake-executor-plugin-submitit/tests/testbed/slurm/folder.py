"""Where the files of a cluster lie: all in one folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import ClusterError

NODES = ("n1", "n2")

_SOCKET_PATH = 107
"""The longest path of a socket that Linux takes, in bytes."""


@dataclass(frozen=True)
class Folder:
    """Paths in the folder of a cluster."""

    path: Path

    @property
    def marker(self) -> Path:
        """Tells that this folder is a cluster's, and so may be emptied."""
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
        """What was started: names, process ids, times."""
        return self.path / "processes.json"

    def gpu(self, number: int) -> Path:
        return self.path / f"gpu{number}"

    def pid(self, daemon: str) -> Path:
        """The file into which a daemon writes its process id when it listens."""
        return self.path / f"{daemon}.pid"

    def log(self, daemon: str) -> Path:
        """The log that a daemon of SLURM keeps."""
        return self.path / "log" / f"{daemon}.log"

    def output(self, daemon: str) -> Path:
        """What a daemon prints."""
        return self.path / "log" / f"{daemon}.out"

    def make(self) -> None:
        """Make the folder, which has to be new or empty, for this user only.

        Raises:
            ClusterError: its path is too long for the sockets that are made in it.
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
