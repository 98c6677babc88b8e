"""The configuration files of a cluster."""

import getpass
import secrets
from dataclasses import dataclass
from pathlib import Path

from .folder import NODES, Folder
from .layout import Layout

NAME = "playground"
"""SLURM's name of the cluster."""

ACCOUNT = "research"
"""The user's default account, and the only one besides root's."""

CPUS, MEMORY_MB, GPUS = 8, 8000, 4
"""Of one node, independent of this host."""


@dataclass(frozen=True)
class Settings:
    """Options of a cluster."""

    accounting: bool = True
    """slurmdbd on MariaDB, and jobs only in accounts that it knows."""

    signal_on_preemption: bool = True
    """preempt_send_user_signal: preemption with GraceTime sends the signal of `sbatch --signal`."""

    node_timeout: int = 300
    """SlurmdTimeout: seconds until a node that does not answer is down, and its jobs requeued."""


def write(folder: Folder, settings: Settings, layout: Layout) -> None:
    """Write the configuration of a new cluster, its munge key and its GPUs."""
    common = _common(folder, layout)
    accounting = (
        _ACCOUNTING.format(**common)
        if settings.accounting
        else "AccountingStorageType=accounting_storage/none"
    )
    slurm = _SLURM.format(
        **common,
        preemption="SlurmctldParameters=preempt_send_user_signal"
        if settings.signal_on_preemption
        else "",
        node_timeout=settings.node_timeout,
        limits=_CGROUPS if layout.cgroups else _NO_CGROUPS,
        accounting=accounting,
    )
    _write(folder.munge_key, secrets.token_bytes(128))
    _write(folder.slurm_conf, slurm.encode())
    _write(folder.task_prolog, _TASK_PROLOG.format(**common).encode(), mode=0o700)
    _write(folder.etc / "gres.conf", _GRES.format(**common).encode())
    _write(folder.etc / "cgroup.conf", _CGROUP.encode())
    _write(folder.etc / "slurmdbd.conf", _SLURMDBD.format(**common).encode())
    for number in range(GPUS):
        folder.gpu(number).symlink_to("/dev/null")  # slurmd counts GPUs by their device files


def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
    path.touch(mode)
    path.write_bytes(content)


def _common(folder: Folder, layout: Layout) -> dict[str, object]:
    """Return the values that several files have in common."""
    return {
        "name": NAME,
        "folder": folder,
        "layout": layout,
        "user": getpass.getuser(),
        "nodes": ",".join(NODES),
        "cpus": CPUS,
        "memory": MEMORY_MB,
        "memory_per_cpu": MEMORY_MB // CPUS,
        "gpus": GPUS,
        "last_gpu": GPUS - 1,
    }


_SLURM = """\
ClusterName={name}
SlurmctldHost={layout.controller}({layout.address})
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job is delayed by the lifetime of a credential: by default two minutes.
AuthInfo=socket={layout.munge_socket},cred_expire=5
{layout.listen}

SlurmctldPort={layout.ports.controller}
SlurmctldPidFile={folder.path}/slurmctld.pid
SlurmctldLogFile={folder.path}/log/slurmctld.log
SlurmdPidFile={folder.path}/%n.pid
SlurmdLogFile={folder.path}/log/%n.log
SlurmdSpoolDir={layout.spool}/%n
StateSaveLocation={layout.spool}/state
MailProg=/bin/true
# For jobs that are submitted without an environment.
TaskProlog={folder.task_prolog}

{limits}
SwitchType=switch/none
MpiDefault=none
# Nodes have the resources given below, not those of the host.
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=300
SlurmdTimeout={node_timeout}
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

{accounting}

NodeName=DEFAULT CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus}
{layout.nodes}
PartitionName=DEFAULT Nodes={nodes} PriorityTier=1 PreemptMode=REQUEUE
PartitionName=gpu Default=YES
PartitionName=cancel PreemptMode=CANCEL
PartitionName=grace GraceTime=10
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""

_NO_CGROUPS = """\
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# A job that exceeds its memory is killed at the next check, every two seconds.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill"""

_CGROUPS = """\
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/cgroup
JobAcctGatherFrequency=task=2"""

_CGROUP = """\
CgroupPlugin=cgroup/v1
# The kernel kills what exceeds the memory of its job.
ConstrainRAMSpace=yes
"""

_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={layout.address}
AccountingStoragePort={layout.ports.accounting}
AccountingStoragePass={layout.munge_socket}
AccountingStorageEnforce=associations,limits
AccountingStorageTRES=gres/gpu"""

_GRES = "NodeName={nodes} Name=gpu File={folder.path}/gpu[0-{last_gpu}]\n"

_TASK_PROLOG = """\
#!/bin/sh
echo "export SLURM_CONF={folder.slurm_conf}"
"""

_SLURMDBD = """\
DbdHost={layout.controller}
DbdAddr={layout.address}
DbdPort={layout.ports.accounting}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
{layout.listen}
LogFile={folder.path}/log/slurmdbd.log
PidFile={folder.path}/slurmdbd.pid
# MariaDB listens on a socket in this folder only, which slurmdbd gets by MYSQL_UNIX_PORT.
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
"""
