"""A Snakemake job's resources, as a request for submitit and sbatch."""

import difflib
import hashlib
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

RESOURCES = {
    "runtime": "time limit, in minutes or as 1h30m",
    "mem_mb": "memory of each node, in MB; 0 is all of it",
    "mem_mb_per_cpu": "memory of each CPU, in MB; in place of mem_mb",
    "disk_mb": "used by Snakemake only, not requested from SLURM",
    "resumable": "whether the command saves on SIGUSR2 and resumes when it is started again [no]",
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
    "mpi": "launcher that the command uses, as srun; not requested from SLURM",
    "slurm_extra": "any other flags of sbatch, as one string",
}
"""All resources that have an effect here -> their meaning."""

ALIASES = frozenset({"tasks", "gpu", "gpu_model", "mpi"})
"""Resources that workflows also define themselves: ignored here if they have a global limit."""

_SNAKEMAKE_OWN = {"_cores", "_nodes", "tmpdir", "mem", "mem_mib", "disk", "disk_mib"}

_SYNONYMS = {
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
"""Names in other tools. A resource with such a name would silently have no effect."""

_RESERVED_FLAGS = {
    "--array": "-a", "--error": "-e", "--job-name": "-J", "--open-mode": "", "--output": "-o",
    "--signal": "", "--test-only": "", "--wait": "-W", "--wrap": "", "--parsable": "",
    "--requeue": "", "--comment": "", "--chdir": "-D",
}  # fmt: skip
"""Flags of sbatch that this plugin sets: long -> short."""

_ONE_CLUSTER = "jobs go to one cluster, that of SLURM_CONF: start Snakemake once for each"

_CLUSTER_RESOURCES = ("clusters", "cluster", "slurm_cluster", "slurm_clusters")

_CLUSTER_FLAGS = ("-M", "--clusters", "--cluster")
"""Flags that send a job to another cluster, whose jobs squeue would not list."""


def unknown(names: Iterable[str], declared: Collection[str] = ()) -> dict[str, str]:
    """Return the unknown resources among `names` that look like a mistake, with a hint for each.

    Args:
        names: names of resources of a rule.
        declared: names that the user limits or declares as the workflow's own.
    """
    hints = {}
    for name in names:
        if name in RESOURCES or name in _SNAKEMAKE_OWN or name in declared:
            continue
        close = difflib.get_close_matches(name, RESOURCES, n=1, cutoff=0.8)
        if name in _CLUSTER_RESOURCES:
            hints[name] = _ONE_CLUSTER
        elif name in _SYNONYMS:
            hints[name] = f"did you mean {_SYNONYMS[name]}?"
        elif close:
            hints[name] = f"did you mean {close[0]}?"
        elif name.startswith("slurm_"):
            hints[name] = "did you mean slurm_extra?"
    return hints


@dataclass(frozen=True)
class Request:
    """The resources that a job requests from the cluster."""

    minutes: int
    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    memory: str | None = None
    """In sbatch's notation: 4000M."""
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
    """More arguments of sbatch (slurm_extra)."""

    @property
    def may_requeue(self) -> bool:
        """Whether SLURM may requeue the job."""
        return "--no-requeue" not in self.extra

    def digest(self) -> str:
        """Return a digest that differs between requests."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @property
    def gpus(self) -> int:
        """GPUs of each node."""
        return int(str(self.gpus_per_node or 0).rpartition(":")[2])


def request(resources: Mapping[str, Any], threads: int, default_minutes: int) -> Request:
    """Return the request of a job with these resources.

    Raises:
        ValueError: a resource is invalid; the message names it.
    """
    nodes = _integer(resources, "nodes", 1)
    gpus = _gpus_per_node(resources, nodes)
    tasks = _tasks_per_node(resources, nodes, gpus)
    cpus = _integer(resources, "cpus_per_task", threads)
    if "cpus_per_gpu" in resources:
        node_cpus = _integer(resources, "cpus_per_gpu", 1) * _count(gpus, "cpus_per_gpu")
        cpus = _divide(node_cpus, tasks, "cpus_per_gpu", f"{node_cpus} CPUs", "tasks")
    per_cpu = _integer(resources, "mem_mb_per_cpu", 0)
    return Request(
        minutes=_integer(resources, "runtime", default_minutes),
        nodes=nodes,
        tasks_per_node=tasks,
        cpus_per_task=cpus,
        memory=_memory(resources) if not per_cpu else None,
        memory_per_cpu=f"{per_cpu}M" if per_cpu else None,
        gpus_per_node=gpus,
        gres=_string(resources, "gres"),
        partition=_string(resources, "slurm_partition"),
        account=_string(resources, "slurm_account"),
        qos=_string(resources, "slurm_qos"),
        constraint=_string(resources, "slurm_constraint"),
        reservation=_string(resources, "slurm_reservation"),
        comment=_string(resources, "slurm_comment"),
        extra=_extra(_string(resources, "slurm_extra")),
    )


def is_resumable(resources: Mapping[str, Any], default: bool) -> bool:
    """Return whether a rule's command can stop and resume.

    Raises:
        ValueError: the resource is not a Boolean.
    """
    value = resources.get("resumable", default)
    try:
        return _YES_OR_NO[str(value).lower()]
    except KeyError:
        raise ValueError(f"resource resumable: {value!r} is neither true nor false") from None


_YES_OR_NO = {
    "true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False,
}  # fmt: skip


def _integer(resources: Mapping[str, Any], name: str, default: int) -> int:
    value = resources.get(name, default)
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise ValueError(f"resource {name}: {value!r} is not a whole number") from None
    if number < (1 if default else 0):
        raise ValueError(f"resource {name}: {number} is too small")
    return number


def _string(resources: Mapping[str, Any], name: str) -> str | None:
    value = resources.get(name)
    return str(value) if value not in (None, "") else None


def _memory(resources: Mapping[str, Any]) -> str | None:
    if "mem_mb" not in resources:
        return None
    memory = _integer(resources, "mem_mb", 0)
    return f"{memory}M" if memory else "0"  # sbatch: all memory of the node


def _tasks_per_node(resources: Mapping[str, Any], nodes: int, gpus: str | None) -> int:
    if "tasks_per_node" in resources:
        return _integer(resources, "tasks_per_node", 1)
    if "tasks_per_gpu" in resources:
        return _integer(resources, "tasks_per_gpu", 1) * _count(gpus, "tasks_per_gpu")
    tasks = _integer(resources, "tasks", nodes)
    return _divide(tasks, nodes, "tasks", f"{tasks} tasks", "nodes")


def _divide(number: int, divisor: int, name: str, items: str, parts: str) -> int:
    if number % divisor:
        raise ValueError(
            f"resource {name}: {items} cannot be divided evenly among {divisor} {parts}"
        )
    return number // divisor


def _count(gpus: str | None, name: str) -> int:
    if gpus is None:
        raise ValueError(f"resource {name}: the rule requests no gpus")
    return int(gpus.rpartition(":")[2])


def _gpus_per_node(resources: Mapping[str, Any], nodes: int) -> str | None:
    """Return the GPUs of each node as NUMBER or TYPE:NUMBER, or None."""
    for name in ("gpus_per_node", "gpus", "gpu"):
        value = _string(resources, name)
        if value not in (None, "0"):
            break
    else:
        return None
    kind, _, number = str(value).rpartition(":")
    if name == "gpu":
        kind = kind or _string(resources, "gpu_model") or ""
    if not number.isdigit():
        raise ValueError(f"resource {name}: {value!r} is not a number or TYPE:NUMBER")
    count = int(number)
    if name != "gpus_per_node":
        count = _divide(count, nodes, name, f"{count} GPUs", "nodes")
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
        if name in _CLUSTER_FLAGS:
            raise ValueError(f"resource slurm_extra: {name}: {_ONE_CLUSTER}")
        if any(name in (long, short) for long, short in _RESERVED_FLAGS.items()):
            raise ValueError(
                f"resource slurm_extra: {name} is set by the executor; leave it out"
                + ("; there is slurm_comment" if name == "--comment" else "")
            )
    return tuple(words)
