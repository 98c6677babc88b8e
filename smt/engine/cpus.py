"""CPUs that this process may use, and the data workers that run on them."""

import logging
import os
from collections.abc import Mapping
from typing import NamedTuple

from smt.config.project import workers_for
from smt.engine.distributed import Ranks
from smt.engine.launch import ranks_on_node

log = logging.getLogger(__name__)


class CpuShare(NamedTuple):
    """The CPUs of one process."""

    cpus: int
    source: str
    """Who says so, for a message."""


def cpu_share(environment: Mapping[str, str], allowed: int) -> CpuShare:
    """Return the CPUs of this process, of the `allowed` ones that the system lets it run on.

    SLURM gives CPUs to tasks, but does not bind them to theirs on every cluster. Processes that
    `torchrun` started share what its task has; so do tasks without a number of their own.
    """
    shares = [CpuShare(allowed, "its CPU affinity")]
    per_task, on_node = (
        environment.get(f"SLURM_CPUS_{name}", "") for name in ("PER_TASK", "ON_NODE")
    )
    ranks = ranks_on_node(environment)
    if "LOCAL_WORLD_SIZE" in environment:
        whole = min(allowed, int(on_node or allowed))
        shares.append(CpuShare(max(whole // ranks, 1), f"{whole} for {ranks} processes"))
    elif per_task:
        shares.append(CpuShare(int(per_task), f"SLURM_CPUS_PER_TASK={per_task}"))
    elif on_node:
        source = f"SLURM_CPUS_ON_NODE={on_node} for {ranks} processes"
        shares.append(CpuShare(max(int(on_node) // ranks, 1), source))
    return min(shares)


def data_workers(wanted: int | None, ranks: Ranks) -> int:
    """Return the number of data workers of this process: `wanted`, or what its CPUs allow.

    Warns, on rank 0, of more than there are CPUs for.
    """
    share = cpu_share(os.environ, len(os.sched_getaffinity(0)))
    if wanted is None:
        return workers_for(share.cpus)
    if wanted > share.cpus and ranks.is_first:
        log.warning(
            "%d data workers for the %d CPUs of this process (%s): they read no faster than %d; "
            "lower `workers` (params/scales.yaml, or --workers), or give it more CPUs (SLURM: "
            "--cpus-per-task)",
            wanted, share.cpus, share.source, share.cpus,
        )  # fmt: skip
    return wanted
