"""Starting each daemon of a cluster, and knowing when it is ready."""

import getpass
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .configuration import ACCOUNT, NAME
from .errors import ClusterError
from .folder import Folder
from .processes import Processes

_PATIENCE = 300.0
"""Seconds until a daemon that runs, but does not answer, is given up."""

_STARTS = 3
"""How often slurmdbd is started before it is given up."""

_LAST_LINES = 3

_KNOWN = ("already exist", "Nothing new added")
"""What sacctmgr says when it is to add what is there."""


class Daemons:
    """The daemons of the cluster in `folder`; `environment` is what they and its users need.

    If they are `tied`, they end with this process.
    """

    def __init__(self, folder: Folder, environment: Mapping[str, str], *, tied: bool) -> None:
        self.processes = Processes(folder.processes, tied=tied)
        self._folder = folder
        self._environment = dict(environment)

    def start_munge(self) -> None:
        """Start munged, on a socket in the folder."""
        socket = self._folder.munge_socket
        self._begin(
            "munged", "munged", "--foreground", "--force", "--num-threads=4", "--origin=127.0.0.1",
            f"--socket={socket}", f"--key-file={self._folder.munge_key}",
            f"--pid-file={self._folder.pid('munged')}", f"--seed-file={socket.with_name('seed')}",
        )  # fmt: skip
        self.wait("munged", lambda: _absent(socket))

    def start_database(self) -> None:
        """Start MariaDB on a socket in the folder, on the database there or on a new one."""
        folder, socket = self._folder, self._folder.database_socket
        # A crash may cost data, which nobody keeps.
        options = [
            "--no-defaults", f"--datadir={folder.database}", f"--user={getpass.getuser()}",
            "--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M",
            "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0",
            "--innodb-flush-method=nosync", "--innodb-autoextend-increment=1",
            "--innodb-undo-tablespaces=0",
            "--innodb-lock-wait-timeout=900", "--performance-schema=OFF",
        ]  # fmt: skip
        if not folder.database.exists():
            self._install_database(options)
        self._begin("mariadbd", "mariadbd", *options, "--skip-networking", f"--socket={socket}",
                    f"--pid-file={folder.pid('mariadbd')}")  # fmt: skip
        self.wait("mariadbd", lambda: _absent(socket))

    def _install_database(self, options: Sequence[str]) -> None:
        command = ["mariadb-install-db", *options, "--skip-test-db", "--skip-name-resolve",
                   "--auth-root-authentication-method=normal"]  # fmt: skip
        with self._folder.output("mariadbd").open("wb") as output:
            done = subprocess.run(command, env=self._environment, stdout=output, stderr=output)
        if done.returncode:
            raise self._failure("mariadbd", f"mariadb-install-db: exit code {done.returncode}")

    def start_accounting(self) -> None:
        """Start slurmdbd on the database, and let it know the cluster and the user.

        Once in some hundred starts on a busy machine it gets no answer to its first question to
        the database, and ends ("We should have gotten a result: No error"): it is started again.
        """
        account = f"account={ACCOUNT}", f"defaultaccount={ACCOUNT}"
        for left in reversed(range(_STARTS)):
            self._begin(
                "slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=str(self._folder.database_socket)
            )
            try:
                self.wait("slurmdbd", lambda: self._add("cluster", NAME))
                break
            except ClusterError:
                if not left:
                    raise
        failed = self._add("account", ACCOUNT) or self._add("user", getpass.getuser(), *account)
        if failed:
            raise self._failure("slurmdbd", failed)

    def start_controller(self) -> None:
        """Start slurmctld, which takes up what an earlier one of the cluster left."""
        self._begin("slurmctld", "slurmctld", "-D")

    def start_node(self, node: str) -> None:
        """Start a node's slurmd; return when it listens, for then it writes its process id.

        SLURMD_NODENAME tells its processes from those of users.
        """
        file = self._folder.pid(node)
        file.unlink(missing_ok=True)
        self._begin(node, "slurmd", "-D", "-N", node, SLURMD_NODENAME=node)
        self.wait(node, lambda: _absent(file))

    def wait(self, names: str | Sequence[str], lacking: Callable[[], str]) -> None:
        """Return when nothing is `lacking`, which says what is.

        Raises:
            ClusterError: one of the named daemons ends before, or nothing more happens.
        """
        names = (names,) if isinstance(names, str) else names
        deadline = time.monotonic() + _PATIENCE
        while lack := lacking():
            for name in names:
                if self.processes.find(name) is None:
                    raise self._failure(name, "ended")
            if time.monotonic() > deadline:
                raise self._failure(names[0], f"not ready after {_PATIENCE:.0f} s: {lack}")
            time.sleep(0.05)

    def _begin(self, name: str, *command: str, **environment: str) -> None:
        self.processes.begin(
            name, command, self._folder.output(name), {**self._environment, **environment}
        )

    def _add(self, kind: str, *what: str) -> str:
        """Tell slurmdbd of a cluster, account or user; return why it failed, or nothing.

        It may know of them already: sacctmgr says so, and fails.
        """
        command = ["sacctmgr", "-i", "add", kind, *what]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
        said = done.stderr or done.stdout
        known = any(each in said for each in _KNOWN)
        return f"{' '.join(command)}: {said}" if done.returncode and not known else ""

    def _failure(self, name: str, what: str) -> ClusterError:
        output = self._folder.output(name)
        lines = output.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        said = " | ".join(line.strip() for line in lines)
        return ClusterError(f"{name}: {' '.join(what.split())}; {output} ends with: {said}")


def _absent(path: Path) -> str:
    return "" if path.exists() else f"no {path} yet"
