"""The configuration files of a cluster."""

import getpass
import random
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from .errors import ClusterError
from .folder import NODES, Folder

NAME = "playground"
"""SLURM's name of the cluster."""

ACCOUNT = "research"
"""The user's default account, and the only one besides root's."""

CPUS, MEMORY_MB, GPUS = 8, 8000, 4
"""Of one node, independent of this host."""

_PORTS = range(20000, 32000)
"""Below the ephemeral ports, which outgoing connections use."""


@dataclass(frozen=True)
class Settings:
    """Options of a cluster."""

    accounting: bool = True
    """slurmdbd on MariaDB, and jobs only in accounts that it knows."""

    signal_on_preemption: bool = True
    """preempt_send_user_signal: preemption with GraceTime sends the signal of `sbatch --signal`."""


def write(folder: Folder, settings: Settings) -> None:
    """Write the configuration of a new cluster, its munge key and its GPUs."""
    control, first, second, database = _free_ports(4)
    common = _common(folder)
    accounting = (
        _ACCOUNTING.format(**common, port=database)
        if settings.accounting
        else "AccountingStorageType=accounting_storage/none"
    )
    slurm = _SLURM.format(
        **common,
        control_port=control,
        node_ports=f"{first},{second}",
        preemption="SlurmctldParameters=preempt_send_user_signal"
        if settings.signal_on_preemption
        else "",
        accounting=accounting,
    )
    _write(folder.munge_key, secrets.token_bytes(128))
    _write(folder.slurm_conf, slurm.encode())
    _write(folder.task_prolog, _TASK_PROLOG.format(**common).encode(), mode=0o700)
    _write(folder.etc / "gres.conf", _GRES.format(**common).encode())
    _write(folder.etc / "cgroup.conf", b"CgroupPlugin=cgroup/v1\n")  # needs no cgroups of the host
    _write(folder.etc / "slurmdbd.conf", _SLURMDBD.format(**common, port=database).encode())
    for number in range(GPUS):
        folder.gpu(number).symlink_to("/dev/null")  # slurmd counts GPUs by their device files


def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
    path.touch(mode)
    path.write_bytes(content)


def _common(folder: Folder) -> dict[str, object]:
    """Return the values that several files have in common."""
    address = _address()
    return {
        "name": NAME,
        "folder": folder,
        "user": getpass.getuser(),
        "host": socket.gethostname().split(".")[0],
        "address": address or "127.0.0.1",
        "listen": "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny" if address else "",
        "nodes": ",".join(NODES),
        "cpus": CPUS,
        "memory": MEMORY_MB,
        "memory_per_cpu": MEMORY_MB // CPUS,
        "gpus": GPUS,
        "last_gpu": GPUS - 1,
    }


def _address() -> str | None:
    """Return the address of this host's name if it is a loopback address.

    SLURM listens on this address, or otherwise on all, where munge authenticates other users.
    """
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


_SLURM = """\
ClusterName={name}
SlurmctldHost={host}({address})
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job is delayed by the lifetime of a credential: by default two minutes.
AuthInfo=socket={folder.munge_socket},cred_expire=5
{listen}

SlurmctldPort={control_port}
SlurmctldPidFile={folder.path}/slurmctld.pid
SlurmctldLogFile={folder.path}/log/slurmctld.log
SlurmdPidFile={folder.path}/%n.pid
SlurmdLogFile={folder.path}/log/%n.log
SlurmdSpoolDir={folder.path}/%n
StateSaveLocation={folder.path}/state
MailProg=/bin/true
# For jobs that are submitted without an environment.
TaskProlog={folder.task_prolog}

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
# Nodes have the resources given below, not those of the host.
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=300
SlurmdTimeout=300
KillWait=5
MinJobAge=3600

SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
DefMemPerCPU={memory_per_cpu}
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=1,sched_min_interval=0,bf_interval=2
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{preemption}

# A job that exceeds its memory is killed at the next check, every two seconds.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
{accounting}

NodeName=DEFAULT CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus}
NodeName={nodes} NodeHostname=localhost NodeAddr={address} Port={node_ports}
PartitionName=DEFAULT Nodes={nodes} PriorityTier=1 PreemptMode=REQUEUE
PartitionName=gpu Default=YES
PartitionName=cancel PreemptMode=CANCEL
PartitionName=grace GraceTime=10
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""

_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStoragePort={port}
AccountingStoragePass={folder.munge_socket}
AccountingStorageEnforce=associations,limits
AccountingStorageTRES=gres/gpu"""

_GRES = "NodeName={nodes} Name=gpu File={folder.path}/gpu[0-{last_gpu}]\n"

_TASK_PROLOG = """\
#!/bin/sh
echo "export SLURM_CONF={folder.slurm_conf}"
"""

_SLURMDBD = """\
DbdHost={host}
DbdAddr={address}
DbdPort={port}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder.munge_socket}
{listen}
LogFile={folder.path}/log/slurmdbd.log
PidFile={folder.path}/slurmdbd.pid
# MariaDB listens on a socket in this folder only, which slurmdbd gets by MYSQL_UNIX_PORT.
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
"""
