"""A SLURM cluster of several hosts: a login node with slurmctld, and n1 and n2."""

from collections.abc import Sequence
from pathlib import Path

from testbed.hosts import Host, Room, missing_requirement

from .cluster import Cluster
from .configuration import Settings
from .errors import ClusterError
from .folder import NODES
from .layout import Layout, several_hosts

LOGIN = "login"

_MUNGE = "munged-"
"""Before the name of a host: every host has a munged of its own."""


class HostsCluster(Cluster):
    """A `Cluster` whose nodes are hosts of their own, with slurmctld and accounting on `login`.

    Its programs run on these hosts only: `run` runs them on `login`. Memory of jobs is limited by
    control groups where the machine has them in version 1. Folders in `shared` are those of the
    shared file system, beside that of the cluster. SLURM is that of this machine, or of another
    Debian in the folder `root`. Takes root: see `testbed.hosts.Room`.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings | None = None,
        *,
        shared: Sequence[Path] = (),
        tied: bool = False,
        template: Path | None = None,
        root: Path = Path("/"),
    ) -> None:
        super().__init__(folder, settings, tied=tied, template=template)
        self.room = Room(
            self.folder.path / "hosts", (LOGIN, *NODES), [self.folder.path, *shared], tied=tied,
            root=root,
        )  # fmt: skip

    def __getitem__(self, name: str) -> Host:
        """Return a host."""
        return self.room[name]

    def host_of(self, daemon: str) -> str:
        """Return the name of the host on which a daemon runs."""
        host = daemon.removeprefix(_MUNGE)
        return host if host in self.room.hosts else LOGIN

    def command(self, *command: str, host: str = "", folder: Path | str = "/") -> Sequence[str]:
        """Return the arguments of a process that runs a command on a host, by default `login`."""
        return self.room[host or LOGIN].command(*command, folder=folder)

    def node_states(self) -> dict[str, str]:
        """Return each node's state as sinfo names it; nothing while slurmctld does not answer."""
        return super().node_states() if self.room[LOGIN].is_on else {}

    def stop(self) -> None:
        """End all hosts with everything on them; the logs stay."""
        if not self.folder.marker.exists():
            return
        self.room.stop()
        self._daemons.processes.end(self._daemons.processes.names())

    def power_cut(self, host: str) -> None:
        """End a host at once, without any message to the others."""
        self.room[host].power_cut()
        names = [name for name in self._daemons.processes.names() if self.host_of(name) == host]
        self._daemons.processes.end(names)

    def boot(self, node: str) -> None:
        """Switch a node on again; return when it accepts jobs."""
        self._boot(node)
        self._daemons.start_munge(_MUNGE + node, Path(self._layout().munge_socket))
        self.node_up(node)

    def _boot(self, name: str) -> None:
        host = self.room[name]
        if not host.is_on:
            host.boot()
        layout = self._layout()
        script = f"""
            mkdir -p {Path(layout.munge_socket).parent} {layout.spool}/state {layout.spool}/{name}
            rm -rf /etc/slurm
            ln -s {self.folder.etc} /etc/slurm"""
        host.run("sh", "-e", "-c", script)

    def controller_down(self) -> None:
        """Stop slurmctld: SLURM's programs fail, but jobs keep running."""
        controller = self._daemons.processes.find("slurmctld")
        if controller is not None:
            self.run("scontrol", "shutdown", "slurmctld")
            controller.wait()

    def node_down(self, node: str, *, keep_jobs: bool = False) -> None:
        """Cut a node's power, or with `keep_jobs` take its cable out; set its state to down."""
        if keep_jobs:
            self.room[node].unplug()
        else:
            self.power_cut(node)
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def _require_programs(self) -> None:
        super()._require_programs()
        if missing := missing_requirement():
            raise ClusterError(missing)

    def _start_hosts(self) -> None:
        self.room.start()
        for name in self.room.hosts:
            self._boot(name)

    def _layout(self) -> Layout:
        addresses = {name: host.address for name, host in self.room.hosts.items()}
        return several_hosts(LOGIN, addresses, cgroups=self.room.has_cgroups)

    def _start_munge(self) -> None:
        for name in self.room.hosts:
            self._daemons.start_munge(_MUNGE + name, Path(self._layout().munge_socket))
