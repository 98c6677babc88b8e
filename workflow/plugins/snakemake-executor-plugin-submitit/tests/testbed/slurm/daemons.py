"""Starting the daemons of a cluster, until they are ready."""

import getpass
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from testbed.processes import Processes

from .configuration import ACCOUNT, NAME
from .errors import ClusterError
from .folder import Folder

_READY_TIMEOUT = 300.0
"""Seconds that a daemon may take until it answers."""

_MAX_STARTS = 3
"""Number of tries to start slurmdbd."""

_LAST_LINES = 3

_ALREADY_EXISTS = ("already exist", "Nothing new added")
"""sacctmgr's messages about entries that exist already."""


class Daemons:
    """The daemons of the cluster in `folder`; `environment` is that of their users.

    `tied` daemons end with this process. `place` turns the command of a daemon into one that runs
    it on its host, if that is another one.
    """

    def __init__(
        self,
        folder: Folder,
        environment: Mapping[str, str],
        *,
        tied: bool,
        place: Callable[[str, Sequence[str]], Sequence[str]] = lambda daemon, command: command,
    ) -> None:
        self.processes = Processes(folder.processes, tied=tied)
        self._folder = folder
        self._environment = dict(environment)
        self._place = place

    def start_munge(self, name: str = "munged", socket: Path | None = None) -> None:
        """Start munged, on a socket in the folder."""
        socket = socket or self._folder.munge_socket
        self._begin(
            name, "munged", "--foreground", "--force", "--num-threads=4", "--origin=127.0.0.1",
            f"--socket={socket}", f"--key-file={self._folder.munge_key}",
            f"--pid-file={socket.with_name('pid')}", f"--seed-file={socket.with_name('seed')}",
        )  # fmt: skip
        probe = self._place(name, ["munge", "--no-input", f"--socket={socket}"])
        self.wait(name, lambda: self._run(probe).stderr)

    def start_database(self) -> None:
        """Start MariaDB on a socket in the folder, on the database there or on a new one."""
        folder, socket = self._folder, self._folder.database_socket
        # Data may be lost in a crash, which is no harm here.
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
        self.wait("mariadbd", lambda: _missing_file(socket))

    def _install_database(self, options: Sequence[str]) -> None:
        command = ["mariadb-install-db", *options, "--skip-test-db", "--skip-name-resolve",
                   "--auth-root-authentication-method=normal"]  # fmt: skip
        with self._folder.output("mariadbd").open("wb") as output:
            process = subprocess.run(command, env=self._environment, stdout=output, stderr=output)
        if process.returncode:
            raise self._failure("mariadbd", f"mariadb-install-db: exit code {process.returncode}")

    def start_accounting(self) -> None:
        """Start slurmdbd on the database, and add the cluster and the user.

        Once in some hundred starts on a busy machine its first query fails, and it ends ("We should
        have gotten a result: No error"): it is started again.
        """
        account = f"account={ACCOUNT}", f"defaultaccount={ACCOUNT}"
        for tries_left in reversed(range(_MAX_STARTS)):
            self._begin(
                "slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=str(self._folder.database_socket)
            )
            try:
                self.wait("slurmdbd", lambda: self._add("cluster", NAME))
                break
            except ClusterError:
                if not tries_left:
                    raise
        error = self._add("account", ACCOUNT) or self._add("user", getpass.getuser(), *account)
        if error:
            raise self._failure("slurmdbd", error)

    def start_controller(self) -> None:
        """Start slurmctld, which reads the saved state of the cluster, if any."""
        self._begin("slurmctld", "slurmctld", "-D")

    def start_node(self, node: str) -> None:
        """Start a node's slurmd; return when it listens and has written its process id.

        SLURMD_NODENAME marks the processes of the node.
        """
        file = self._folder.pid(node)
        file.unlink(missing_ok=True)
        self._begin(node, "slurmd", "-D", "-N", node, SLURMD_NODENAME=node)
        self.wait(node, lambda: _missing_file(file))

    def wait(self, names: str | Sequence[str], missing: Callable[[], str]) -> None:
        """Wait until `missing`, which describes what is not ready, returns an empty text.

        Raises:
            ClusterError: one of the daemons has ended, or the time is over.
        """
        names = (names,) if isinstance(names, str) else names
        deadline = time.monotonic() + _READY_TIMEOUT
        while reason := missing():
            for name in names:
                if self.processes.find(name) is None:
                    raise self._failure(name, "ended")
            if time.monotonic() > deadline:
                raise self._failure(names[0], f"not ready after {_READY_TIMEOUT:.0f} s: {reason}")
            time.sleep(0.05)

    def _begin(self, name: str, *command: str, **environment: str) -> None:
        self.processes.begin(
            name,
            self._place(name, command),
            self._folder.output(name),
            {**self._environment, **environment},
        )

    def _add(self, kind: str, *what: str) -> str:
        """Add a cluster, account or user to accounting; return an error, or an empty text.

        sacctmgr fails if the entry exists already, which is no error here.
        """
        command = ["sacctmgr", "-i", "add", kind, *what]
        process = self._run(self._place("slurmdbd", command))
        message = process.stderr or process.stdout
        exists = any(text in message for text in _ALREADY_EXISTS)
        return f"{' '.join(command)}: {message}" if process.returncode and not exists else ""

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self._environment, capture_output=True, text=True)

    def _failure(self, name: str, what: str) -> ClusterError:
        output = self._folder.output(name)
        lines = output.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        end = " | ".join(line.strip() for line in lines)
        return ClusterError(f"{name}: {' '.join(what.split())}; {output} ends with: {end}")


def _missing_file(path: Path) -> str:
    return "" if path.exists() else f"no {path} yet"
