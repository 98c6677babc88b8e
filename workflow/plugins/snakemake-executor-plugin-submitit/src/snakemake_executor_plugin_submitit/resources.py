"""From the resources of a Snakemake job to what submitit and sbatch are asked for."""

import difflib
import hashlib
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

RESOURCES = {
    "runtime": "time limit, in minutes or as 1h30m",
    "mem_mb": "memory of each node, in MB; 0 is all that it has",
    "mem_mb_per_cpu": "memory of each CPU, in MB; in place of mem_mb",
    "disk_mb": "known to Snakemake; SLURM is not asked for it",
    "resumable": "whether the command saves on SIGUSR2, and goes on when it is started again [no]",
    "nodes": "nodes [1]",
    "tasks": "tasks of all nodes together, in place of tasks_per_node",
    "tasks_per_node": "tasks of each node, for srun to start [1]",
    "tasks_per_gpu": "tasks for each GPU, in place of tasks_per_node",
    "cpus_per_task": "CPUs of each task [the rule's threads]",
    "cpus_per_gpu": "CPUs for each GPU, in place of cpus_per_task",
    "gpus": "GPUs of all nodes together, as 8 or a100:8",
    "gpu": "the same, as a number",
    "gpu_model": "type of the GPUs, with gpu",
    "gpus_per_node": "GPUs of each node, as 8 or a100:8",
    "gres": "generic resources of each node, as gpu:a100:4 or license:1",
    "slurm_partition": "partition",
    "slurm_account": "account",
    "slurm_qos": "quality of service",
    "slurm_constraint": "features that the nodes must have",
    "slurm_reservation": "reservation",
    "slurm_comment": "comment of the job in SLURM",
    "mpi": "what the command starts its tasks with; SLURM is not asked for it",
    "slurm_extra": "any other flags of sbatch, as one string",
}
"""Every resource that means something here, and what."""

ALIASES = frozenset({"tasks", "gpu", "gpu_model", "mpi"})
"""Words that workflows use for things of their own as well: where those are limited."""

_SNAKEMAKE_OWN = {"_cores", "_nodes", "tmpdir", "mem", "mem_mib", "disk", "disk_mib"}

_OTHER_NAMES = {
    "account": "slurm_account",
    "comment": "slurm_comment",
    "constraint": "slurm_constraint",
    "cpus": "cpus_per_task",
    "hours": "runtime",
    "mem_gb": "mem_mb",
    "minutes": "runtime",
    "ntasks_per_node": "tasks_per_node",
    "partition": "slurm_partition",
    "qos": "slurm_qos",
    "reservation": "slurm_reservation",
    "time": "runtime",
    "time_min": "runtime",
    "timeout_min": "runtime",
    "walltime": "runtime",
}
"""What other tools call them. A resource of such a name would be silently without effect."""

_TAKEN = {
    "--array": "-a", "--error": "-e", "--job-name": "-J", "--open-mode": "", "--output": "-o",
    "--signal": "", "--test-only": "", "--wait": "-W", "--wrap": "", "--parsable": "",
    "--requeue": "", "--comment": "", "--chdir": "-D",
}  # fmt: skip
"""Flags of sbatch that jobs here depend on."""

_OF_CLUSTERS = ("clusters", "cluster", "slurm_cluster", "slurm_clusters")

_CLUSTERS = ("-M", "--clusters", "--cluster")
"""Flags that send a job to another cluster, whose jobs squeue would have to be asked for."""


def without_effect(names: Iterable[str], known: Collection[str] = ()) -> dict[str, str]:
    """Return each of `names` that has no effect and looks as if it should, with what does.

    Args:
        names: names of resources of a rule.
        known: names that the user limits, scopes or declares, and so means as they are.
    """
    found = {}
    for name in names:
        if name in RESOURCES or name in _SNAKEMAKE_OWN or name in known:
            continue
        close = difflib.get_close_matches(name, RESOURCES, n=1, cutoff=0.8)
        if name in _OF_CLUSTERS:
            found[name] = (
                "jobs go to one cluster, that of SLURM_CONF: start Snakemake once for each"
            )
        elif name in _OTHER_NAMES:
            found[name] = f"meant: {_OTHER_NAMES[name]}?"
        elif close:
            found[name] = f"meant: {close[0]}?"
        elif name.startswith("slurm_"):
            found[name] = "meant: slurm_extra?"
    return found


@dataclass(frozen=True)
class Request:
    """What a job asks of the cluster.

    Raises:
        ValueError: a resource that cannot be met as it is; the message names it.
    """

    minutes: int
    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    memory: str | None = None
    """As sbatch writes it: 4000M."""
    memory_per_cpu: str | None = None
    gpus_per_node: str | None = None
    gres: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    comment: str | None = None
    extra: tuple[str, ...] = field(default=())
    """Further arguments of sbatch."""

    @property
    def may_requeue(self) -> bool:
        """Whether SLURM may start the job again."""
        return "--no-requeue" not in self.extra

    def digest(self) -> str:
        """Return what tells this request from others."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @property
    def gpus(self) -> int:
        """GPUs of each node."""
        return int(str(self.gpus_per_node or 0).rpartition(":")[2])


def request(resources: Mapping[str, Any], threads: int, default_minutes: int) -> Request:
    """Return what a job with these resources asks for."""
    nodes = _whole(resources, "nodes", 1)
    gpus = _gpus_per_node(resources, nodes)
    tasks, cpus = (
        _tasks_per_node(resources, nodes, gpus),
        _whole(resources, "cpus_per_task", threads),
    )
    if "cpus_per_gpu" in resources:
        of_node = _whole(resources, "cpus_per_gpu", 1) * _count(gpus, "cpus_per_gpu")
        cpus = _divided(of_node, tasks, "cpus_per_gpu", f"{of_node} CPUs", "tasks")
    per_cpu = _whole(resources, "mem_mb_per_cpu", 0)
    return Request(
        minutes=_whole(resources, "runtime", default_minutes),
        nodes=nodes,
        tasks_per_node=tasks,
        cpus_per_task=cpus,
        memory=_memory(resources) if not per_cpu else None,
        memory_per_cpu=f"{per_cpu}M" if per_cpu else None,
        gpus_per_node=gpus,
        gres=_word(resources, "gres"),
        partition=_word(resources, "slurm_partition"),
        account=_word(resources, "slurm_account"),
        qos=_word(resources, "slurm_qos"),
        constraint=_word(resources, "slurm_constraint"),
        reservation=_word(resources, "slurm_reservation"),
        comment=_word(resources, "slurm_comment"),
        extra=_extra(_word(resources, "slurm_extra")),
    )


def is_resumable(resources: Mapping[str, Any], default: bool) -> bool:
    """Return whether a rule's command can stop and go on.

    Raises:
        ValueError: it says neither yes nor no.
    """
    value = resources.get("resumable", default)
    try:
        return _YES_OR_NO[str(value).lower()]
    except KeyError:
        raise ValueError(f"resource resumable: {value!r} is neither true nor false") from None


_YES_OR_NO = {
    "true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False,
}  # fmt: skip


def _whole(resources: Mapping[str, Any], name: str, default: int) -> int:
    value = resources.get(name, default)
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise ValueError(f"resource {name}: {value!r} is not a whole number") from None
    if number < (1 if default else 0):
        raise ValueError(f"resource {name}: {number} is too small")
    return number


def _word(resources: Mapping[str, Any], name: str) -> str | None:
    value = resources.get(name)
    return str(value) if value not in (None, "") else None


def _memory(resources: Mapping[str, Any]) -> str | None:
    if "mem_mb" not in resources:
        return None
    memory = _whole(resources, "mem_mb", 0)
    return f"{memory}M" if memory else "0"  # of sbatch: all memory of the node


def _tasks_per_node(resources: Mapping[str, Any], nodes: int, gpus: str | None) -> int:
    if "tasks_per_node" in resources:
        return _whole(resources, "tasks_per_node", 1)
    if "tasks_per_gpu" in resources:
        return _whole(resources, "tasks_per_gpu", 1) * _count(gpus, "tasks_per_gpu")
    tasks = _whole(resources, "tasks", nodes)
    return _divided(tasks, nodes, "tasks", f"{tasks} tasks", "nodes")


def _divided(number: int, by: int, name: str, what: str, parts: str) -> int:
    if number % by:
        raise ValueError(f"resource {name}: {what} do not divide by {by} {parts}")
    return number // by


def _count(gpus: str | None, name: str) -> int:
    if gpus is None:
        raise ValueError(f"resource {name}: there are no gpus")
    return int(gpus.rpartition(":")[2])


def _gpus_per_node(resources: Mapping[str, Any], nodes: int) -> str | None:
    """Return the GPUs of each node as NUMBER or TYPE:NUMBER, or None."""
    for name in ("gpus_per_node", "gpus", "gpu"):
        asked = _word(resources, name)
        if asked not in (None, "0"):
            break
    else:
        return None
    kind, _, number = str(asked).rpartition(":")
    if name == "gpu":
        kind = kind or _word(resources, "gpu_model") or ""
    if not number.isdigit():
        raise ValueError(f"resource {name}: {asked!r} is not a number or TYPE:NUMBER")
    count = int(number)
    if name != "gpus_per_node":
        count = _divided(count, nodes, name, f"{count} GPUs", "nodes")
    return f"{kind}:{count}" if kind else str(count)


def _extra(flags: str | None) -> tuple[str, ...]:
    if flags is None:
        return ()
    try:
        words = shlex.split(flags)
    except ValueError as error:
        raise ValueError(f"resource slurm_extra: {error}: {flags}") from None
    for word in words:
        name = word.partition("=")[0] if word.startswith("--") else word[:2]
        if name in _CLUSTERS:
            raise ValueError(
                f"resource slurm_extra: {name}: jobs go to one cluster, that of SLURM_CONF; start "
                "Snakemake once for each"
            )
        if any(name in (long, short) for long, short in _TAKEN.items()):
            raise ValueError(
                f"resource slurm_extra: {name} is set by the executor; leave it out"
                + ("; there is slurm_comment" if name == "--comment" else "")
            )
    return tuple(words)
