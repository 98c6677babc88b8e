"""Where the daemons of a cluster run: all on this host, or each node on one of its own."""

import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import ClusterError
from .folder import NODES, Folder

_PORTS = range(20000, 32000)
"""Below the ephemeral ports, which outgoing connections use."""


@dataclass(frozen=True)
class Ports:
    """Where daemons listen, by default SLURM's own ports."""

    controller: int = 6817
    accounting: int = 6819
    nodes: tuple[int, ...] = (6818,)


@dataclass(frozen=True)
class Layout:
    """The part of the configuration that depends on where daemons run."""

    controller: str
    """Name of slurmctld's host."""
    address: str
    """Its address."""
    ports: Ports
    nodes: str
    """The lines of slurm.conf that say where the nodes are."""
    munge_socket: str
    """Of every host's own munged."""
    spool: str
    """Folder of the daemons' state."""
    listen: str = ""
    """A line of slurm.conf, so that daemons listen on the loopback interface only."""
    cgroups: bool = False
    """Control groups limit the memory of jobs, and keep their processes together."""


def one_host(folder: Folder) -> Layout:
    """Return the layout with all daemons on this host.

    They listen on the address of this host's name if that is a loopback address, or otherwise on
    all addresses, where munge authenticates other users.
    """
    ports = _free_ports(2 + len(NODES))
    loopback = _loopback_address()
    address = loopback or "127.0.0.1"
    where = f"NodeHostname=localhost NodeAddr={address}"
    return Layout(
        controller=socket.gethostname().split(".")[0],
        address=address,
        ports=Ports(ports[0], ports[1], tuple(ports[2:])),
        nodes=f"NodeName={','.join(NODES)} {where} Port={','.join(map(str, ports[2:]))}",
        munge_socket=str(folder.munge_socket),
        spool=str(folder.path),
        listen="CommunicationParameters=NoCtldInAddrAny,NoInAddrAny" if loopback else "",
    )


def several_hosts(controller: str, addresses: Mapping[str, str], *, cgroups: bool) -> Layout:
    """Return the layout of hosts with these addresses; a node's host is called like the node."""
    return Layout(
        controller=controller,
        address=addresses[controller],
        ports=Ports(),
        nodes="\n".join(f"NodeName={node} NodeAddr={addresses[node]}" for node in NODES),
        munge_socket="/run/munge/munge.socket.2",
        spool="/var/spool/slurm",
        cgroups=cgroups,
    )


def _loopback_address() -> str | None:
    """Return the address of this host's name if it is a loopback address."""
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        return None
    return address if address.startswith("127.") else None


def _free_ports(count: int) -> list[int]:
    """Return ports of this host on which nothing listens."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as trial:
            try:
                trial.bind(("", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise ClusterError(
        f"no {count} free ports from {_PORTS[0]} to {_PORTS[-1]}; stop the programs that use them"
    )
