"""A SLURM cluster of two nodes on this host, and what it has in common with one on several."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from testbed.processes import kill

from . import configuration
from .configuration import Settings
from .daemons import Daemons
from .errors import ClusterError
from .folder import NODES, Folder
from .layout import Layout, one_host
from .node_processes import node_processes
from .programs import SEARCH_PATH, missing_packages, missing_programs


class Cluster:
    """A SLURM cluster whose files are all in one folder.

    Root or an ordinary user can start one; then it runs only jobs of this user. The nodes n1 and n2
    have 8 CPUs, 8000 MB and 4 GPUs each, all simulated. Partitions: `gpu` (the default),
    whose preempted jobs are requeued; `cancel`, whose are cancelled; `grace`, whose are requeued
    after 10 s; `high`, which preempts the others. The user's account is `research`.

    A `tied` cluster ends with the process that starts it, even if that is killed. With a `template`
    folder, the accounting database is copied from there, which takes a tenth of the time of a new
    one; the first cluster with this template makes it, while others wait.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings | None = None,
        *,
        tied: bool = False,
        template: Path | None = None,
    ) -> None:
        self.folder = Folder(folder.resolve())
        self.settings = settings or Settings()
        self._template = template
        self._daemons = Daemons(
            self.folder, self.environment(), tied=tied,
            place=lambda daemon, command: self.command(*command, host=self.host_of(daemon)),
        )  # fmt: skip

    def __enter__(self) -> "Cluster":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def slurm_conf(self) -> Path:
        """The value of SLURM_CONF for programs that use this cluster."""
        return self.folder.slurm_conf

    def environment(self) -> dict[str, str]:
        """Return this process's environment, changed for programs that use the cluster."""
        variables = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "SBATCH_", "SRUN_"))
        }
        return {**variables, "PATH": SEARCH_PATH, "SLURM_CONF": str(self.slurm_conf)}

    def host_of(self, daemon: str) -> str:
        """Return the name of the host on which a daemon runs; here it is not used."""
        return ""

    def command(self, *command: str, host: str = "") -> Sequence[str]:
        """Return the arguments of a process that runs a command on a host of the cluster."""
        return command

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program that uses the cluster; with `check`, raise a ClusterError if it fails."""
        process = subprocess.run(
            self.command(*command), env=self.environment(), capture_output=True, text=True
        )
        if check and process.returncode:
            message = (process.stderr or process.stdout).strip() or "no message"
            raise ClusterError(f"{' '.join(command)}: exit code {process.returncode}; {message}")
        return process

    def start(self) -> None:
        """Start an empty cluster; return when both nodes are idle.

        An earlier cluster in the folder is stopped and removed first.

        Raises:
            ClusterError: programs are missing, the folder has other files, or a daemon does not
                start; then no process is left running.
        """
        self._require_programs()
        self._clear()
        self.folder.make()
        try:
            self._start_hosts()
            configuration.write(self.folder, self.settings, self._layout())
            self._start_daemons()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the daemons and all processes of jobs, also after a crash; the logs stay."""
        if not self.folder.marker.exists():
            return
        # The controller first, so that it starts nothing; slurmd, as it may be starting something.
        self._daemons.processes.end(["slurmctld", *NODES])
        kill(node_processes(self.folder))
        self._daemons.processes.end(self._daemons.processes.names())

    def pids(self) -> dict[str, int]:
        """Return the process id of each daemon that runs."""
        daemons = self._daemons.processes
        running = {name: daemons.find(name) for name in daemons.names()}
        return {name: process.pid for name, process in running.items() if process is not None}

    def is_running(self) -> bool:
        """Return whether all that was started still runs."""
        names = self._daemons.processes.names()
        return bool(names) and set(names) == set(self.pids())

    def node_states(self) -> dict[str, str]:
        """Return each node's state as sinfo names it; nothing while slurmctld does not answer."""
        output = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).stdout
        return dict(line.split() for line in output.splitlines() if len(line.split()) == 2)

    def node_down(self, node: str, *, keep_jobs: bool = False) -> None:
        """Simulate a node failure: kill its processes, and set its state to down.

        With `keep_jobs` only slurmd is killed: the node is unreachable, but its jobs keep running.
        """
        self._daemons.processes.end([node])
        if not keep_jobs:
            kill(node_processes(self.folder, node))
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def node_up(self, node: str) -> None:
        """Restart a failed node; return when it accepts jobs."""
        self._daemons.start_node(node)
        self._await_nodes(node)

    def cancel_all(self) -> None:
        """Kill all jobs; return when the queue is empty."""
        self.run("scancel", "--me", "--full", "--signal=KILL", check=False)
        self.run("scancel", "--me", check=False)
        self._daemons.wait("slurmctld", lambda: self.run("squeue", "--noheader", "--me").stdout)

    def controller_down(self) -> None:
        """Stop slurmctld: SLURM's programs fail, but jobs keep running."""
        self._daemons.processes.terminate("slurmctld")

    def controller_up(self) -> None:
        """Start slurmctld again with its saved state; return when it answers."""
        self._daemons.start_controller()
        self._daemons.wait("slurmctld", lambda: "" if self.node_states() else "no answer")

    def _require_programs(self) -> None:
        missing = missing_programs(self.settings.accounting)
        if missing:
            packages = " ".join(missing_packages(self.settings.accounting))
            raise ClusterError(
                f"not installed: {', '.join(missing)}; on Debian: sudo apt-get install {packages}"
            )

    def _clear(self) -> None:
        folder = self.folder.path
        if not folder.exists() or not any(folder.iterdir()):
            return
        if not self.folder.marker.exists():
            raise ClusterError(f"{folder}: neither empty nor a cluster's; choose another folder")
        self.stop()
        shutil.rmtree(folder)

    def _start_hosts(self) -> None:
        """Start what the daemons run on; here that is this host."""

    def _layout(self) -> Layout:
        return one_host(self.folder)

    def _start_munge(self) -> None:
        self._daemons.start_munge()

    def _start_daemons(self) -> None:
        self._start_munge()
        if self.settings.accounting:
            if self._template is not None:
                self._copy_database(self._template)
            self._daemons.start_database()
            self._daemons.start_accounting()
        self._daemons.start_controller()
        for node in NODES:
            self._daemons.start_node(node)
        self._await_nodes(*NODES)

    def _copy_database(self, template: Path) -> None:
        """Copy the database of an unused cluster, which is made first if there is none."""
        template.mkdir(parents=True, exist_ok=True)
        with (template / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            source = Cluster(template / "cluster", self.settings, tied=True)
            if not (template / "done").exists():
                source._prepare_database()
                (template / "done").touch()
        shutil.copytree(source.folder.database, self.folder.database)

    def _prepare_database(self) -> None:
        self._clear()
        self.folder.make()
        configuration.write(self.folder, self.settings, self._layout())
        try:
            self._daemons.start_munge()
            self._daemons.start_database()
            self._daemons.start_accounting()
            for name in ("slurmdbd", "mariadbd"):
                self._daemons.processes.terminate(name)
        finally:
            self.stop()

    def _await_nodes(self, *names: str) -> None:
        """Return when these nodes accept jobs."""

        def missing() -> str:
            states = self.node_states()
            usable = all(states.get(name) in ("idle", "mixed", "allocated") for name in names)
            return "" if usable else f"sinfo says {states or 'nothing'}"

        self._daemons.wait(("slurmctld", *names), missing)
