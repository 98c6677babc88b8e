"""Which process of a training this one is, and starting the others in a SLURM allocation.

One process a GPU. `torchrun` says who is who by RANK, WORLD_SIZE and LOCAL_RANK; `srun` by
variables of its own. Imported before torch is.
"""

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from smt.errors import UserError

DEFAULT_PORT = "29500"


@dataclass(frozen=True)
class Place:
    """A process among those of a training."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among the processes of its node: which of the node's GPUs it has."""


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """Return which process this one is, as `torchrun` or else `srun` says."""
    if "RANK" in environment:
        return Place(
            int(environment["RANK"]),
            int(environment["WORLD_SIZE"]),
            int(environment.get("LOCAL_RANK", "0")),
        )
    if _in_step(environment) and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return Place(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_LOCALID"]),
        )
    return Place()


def meet(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Complete what torch reads to find the other processes, from what `srun` says."""
    here = place(environment)
    if here.world_size > 1 and "RANK" not in environment:
        environment.setdefault("MASTER_ADDR", environment.get("SLURM_LAUNCH_NODE_IPADDR", ""))
        environment.setdefault("MASTER_PORT", DEFAULT_PORT)
        environment["RANK"] = str(here.rank)
        environment["WORLD_SIZE"] = str(here.world_size)
        environment["LOCAL_RANK"] = str(here.local_rank)


def fan_out(arguments: list[str]) -> None:
    """Become `srun`, if this is the one process of a SLURM job of several tasks.

    It starts `smt ARGUMENTS` once for each task and hands signals on to all of them. Elsewhere
    this does nothing.

    Raises:
        UserError: `srun` cannot be started.
    """
    if not needs_fan_out(os.environ):
        return
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    if "SLURM_CPUS_PER_TASK" in os.environ:  # srun has not read it since SLURM 22.05
        os.environ.setdefault("SRUN_CPUS_PER_TASK", os.environ["SLURM_CPUS_PER_TASK"])
    # Where a process is lost the others say so and end by themselves.
    command = ["srun", "--kill-on-bad-exit=0", "--unbuffered", sys.executable, "-m", "smt"]
    sys.stderr.flush()
    try:
        os.execvp("srun", [*command, *arguments])
    except OSError as error:
        raise UserError(
            f"SLURM gave this job {os.environ['SLURM_NTASKS']} tasks, and srun does not start: "
            f"{error.strerror}; put srun on PATH, or start the processes with torchrun"
        ) from None


def needs_fan_out(environment: Mapping[str, str]) -> bool:
    """Return whether this is a SLURM job of several tasks whose tasks are still to be started."""
    several = int(environment.get("SLURM_NTASKS", "1")) > 1
    return "SLURM_JOB_ID" in environment and several and not _started(environment)


def _started(environment: Mapping[str, str]) -> bool:
    return "RANK" in environment or _in_step(environment)


def _in_step(environment: Mapping[str, str]) -> bool:
    return "SLURM_STEP_ID" in environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
