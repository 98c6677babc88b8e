"""How the processes of a training meet: address of rank 0, network interface, process group."""

import logging
import os
import re
import socket
import time
from collections.abc import MutableMapping
from datetime import timedelta

import psutil
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from smt.cluster.slurm import Slurm, facts
from smt.engine.launch import ProcessRank, process_rank, ranks_on_node

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = timedelta(minutes=10)
"""For every process to connect to rank 0: nodes start at different times."""
START_TIMEOUT = timedelta(hours=1)
"""Of a collective before the first step: rank 0 may be reading a large dataset's file list."""
LEAVE_TIMEOUT = timedelta(seconds=10)
"""For the other ranks to end their last exchange, which this one has ended."""
_AFTER_WATCHDOG = timedelta(minutes=2)
"""A collective waits longer than the watchdog, which ends every rank that waits, with its stacks.

NCCL by itself ends a process after 10 minutes, by SIGABRT.
"""

_REPORT_INTERVAL = timedelta(seconds=30)
"""Between two lines that say who waits for whom."""
_LOOPBACK = "lo"
_BEYOND = "192.0.2.1"
"""An address of no host (RFC 5737): the way to it is the default route."""
_PORTS = range(15000, 29000)
"""Below those that Linux gives to outgoing connections (32768 and above)."""
_stores: list[Store] = []
"""That of the process group, while there is one."""


def connect(backend: str) -> None:
    """Join the process group of `process_rank()`; says every 30 s which ranks are missing.

    `backend` is as for `torch.distributed.init_process_group`.

    Raises:
        dist.DistError, RuntimeError: not every process connected within CONNECT_TIMEOUT.
    """
    set_environment()
    process = process_rank()
    store = _store(process)
    _wait_for_all(store, process)
    store.set_timeout(CONNECT_TIMEOUT)
    dist.init_process_group(
        backend, store=store, rank=process.rank, world_size=process.world_size,
        timeout=CONNECT_TIMEOUT,
    )  # fmt: skip
    dist.set_timeout(START_TIMEOUT)
    _stores[:] = [store]


def leave() -> None:
    """Wait until no rank is in an exchange any more, for LEAVE_TIMEOUT at most.

    Each rank calls it once, before it closes its connections. In gloo the end of a connection
    hides what came through it before from a rank that has yet to look: one that has all it needs
    would take a rank that finished first for lost.
    """
    process, store = process_rank(), _stores.pop()
    others = range(1, process.world_size)
    deadline = time.monotonic() + LEAVE_TIMEOUT.total_seconds()
    try:
        store.set(f"rank {process.rank} ends", "")
        _wait_until(deadline, store, [f"rank {rank} ends" for rank in (0, *others)])
        if process.rank > 0:
            store.set(f"rank {process.rank} has left", "")
        else:  # it serves the store, which the others read
            _wait_until(deadline, store, [f"rank {rank} has left" for rank in others])
    except (dist.DistError, RuntimeError):
        pass  # rank 0 is lost


def _wait_until(deadline: float, store: Store, keys: list[str]) -> None:
    """Wait for these keys; torch's own wait prints those it misses. `deadline` is monotonic."""
    while not store.check(keys) and time.monotonic() < deadline:
        time.sleep(0.02)


def limit_steps(stall_seconds: float) -> None:
    """Bound every collective from now on, for steps that the watchdog bounds by `stall_seconds`.

    A host that loses power closes no connection: only time tells.
    """
    if dist.is_initialized():
        dist.set_timeout(timedelta(seconds=stall_seconds) + _AFTER_WATCHDOG)


def set_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables of torch's rendezvous from those of `srun`, and the network interface.

    What is set already stays: `torchrun` sets the first, a user may set all.
    """
    process = process_rank(environment)
    if process.world_size == 1:
        return
    if "RANK" not in environment:
        environment.setdefault("MASTER_ADDR", _first_node(environment))
        environment.setdefault("MASTER_PORT", str(_port(environment)))
        environment["RANK"] = str(process.rank)
        environment["WORLD_SIZE"] = str(process.world_size)
        environment["LOCAL_RANK"] = str(process.local_rank)
    interface = _interface_to(environment["MASTER_ADDR"])
    if interface == _LOOPBACK and process.world_size > ranks_on_node(environment):
        interface = _interface_to(_BEYOND)  # on the host of rank 0, by its own name
    if interface is not None:
        # By itself gloo takes the address that the host's own name resolves to, which on Debian
        # is 127.0.1.1.
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
        if interface != _LOOPBACK:
            environment.setdefault("NCCL_SOCKET_IFNAME", interface)


def _first_node(environment: MutableMapping[str, str]) -> str:
    """Return the address of the node of rank 0 of an srun step, as SLURM knows it.

    Not SLURM_LAUNCH_NODE_IPADDR: that is where srun was typed, which may be a login node.
    """
    node = first_host(environment["SLURM_STEP_NODELIST"])
    answer = Slurm().ask("scontrol", "--oneliner", "show", "node", node)
    address = facts(answer.text).get("NodeAddr") if answer.succeeded else None
    return address or node  # a container without SLURM's programs: the node's name has to resolve


def first_host(node_list: str) -> str:
    """Return the first name of SLURM's list of nodes, such as `gpu[03-05,9],login1`: gpu03."""
    match = re.match(r"[^,\[]+(\[(\w+)[^\]]*\][^,\[]*)*", node_list)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", match[0]) if match else node_list


def _port(environment: MutableMapping[str, str]) -> int:
    """Return a port that all ranks of a step agree on and other steps of the node do not take."""
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    return _PORTS[(job * 16 + step) % len(_PORTS)]


def _interface_to(address: str) -> str | None:
    """Return the name of the network interface from which `address` is reached, if there is one."""
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing: it looks up the route
            own = probe.getsockname()[0]
    except OSError:
        return None
    return next(
        (
            name
            for name, addresses in psutil.net_if_addrs().items()
            if any(item.address.split("%")[0] == own for item in addresses)
        ),
        None,
    )


def _store(process: ProcessRank) -> Store:
    """Return the key-value store that rank 0 or torchrun serves; try until it answers."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = process.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    deadline = time.monotonic() + CONNECT_TIMEOUT.total_seconds()
    while True:
        try:
            store: Store = dist.TCPStore(  # type: ignore[attr-defined]
                address,
                port,
                process.world_size,
                is_master=serves,
                timeout=_REPORT_INTERVAL,
                wait_for_workers=False,
            )
            return store
        except dist.DistNetworkError:
            if serves:
                raise
            log.warning(
                "rank %d on %s waits for rank 0: nothing answers at %s port %d",
                process.rank, socket.gethostname(), address, port,
            )  # fmt: skip
            if time.monotonic() > deadline:
                raise


def _wait_for_all(store: Store, process: ProcessRank) -> None:
    """Wait until every rank has reached the store."""
    keys = [f"host of rank {rank}" for rank in range(process.world_size)]
    store.set(keys[process.rank], socket.gethostname())
    deadline = time.monotonic() + CONNECT_TIMEOUT.total_seconds()
    while True:
        try:
            store.wait(keys, _REPORT_INTERVAL)
            return
        except (dist.DistStoreError, RuntimeError):
            missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
            log.warning(
                "rank %d on %s waits for %d of %d processes: ranks %s have not started",
                process.rank, socket.gethostname(), len(missing), len(keys),
                ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else ""),
            )  # fmt: skip
            if missing and time.monotonic() > deadline:
                raise
