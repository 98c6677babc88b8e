"""The rank of this process, and the launch of all ranks in a SLURM allocation.

One process a GPU. `torchrun` says who is who by RANK, WORLD_SIZE and LOCAL_RANK; `srun` by
variables of its own. Imported before torch is.
"""

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from smt.errors import UserError


@dataclass(frozen=True)
class ProcessRank:
    """Where a process stands among those of a training."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among the processes of its node: which of the node's GPUs it has."""


def process_rank(environment: Mapping[str, str] = os.environ) -> ProcessRank:
    """Return the rank of this process, from the variables of `torchrun` or else of `srun`."""
    if "RANK" in environment:
        return ProcessRank(
            int(environment["RANK"]),
            int(environment["WORLD_SIZE"]),
            int(environment.get("LOCAL_RANK", "0")),
        )
    if is_srun_step(environment) and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return ProcessRank(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_LOCALID"]),
        )
    return ProcessRank()


def ranks_on_node(environment: Mapping[str, str]) -> int:
    """Return how many processes of the training are on this node, where SLURM spreads them evenly.

    `torchrun` says their number; of a step of `srun` it follows from its tasks and nodes.
    """
    if "LOCAL_WORLD_SIZE" in environment:
        return int(environment["LOCAL_WORLD_SIZE"])
    if not is_srun_step(environment):
        return 1
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    return -(-tasks // int(environment.get("SLURM_STEP_NUM_NODES", "1")))


def launch_with_srun(arguments: list[str]) -> None:
    """Replace this process by `srun`, if it is the one process of a SLURM job of several tasks.

    It starts `smt ARGUMENTS` once for each task and hands signals on to all of them. Elsewhere
    this does nothing.

    Raises:
        UserError: `srun` cannot be started.
    """
    if not needs_srun(os.environ):
        return
    os.environ.setdefault("MASTER_PORT", str(free_port()))
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


def needs_srun(environment: Mapping[str, str]) -> bool:
    """Return whether this is a SLURM job of several tasks whose tasks are still to be started."""
    several = int(environment.get("SLURM_NTASKS", "1")) > 1
    return "SLURM_JOB_ID" in environment and several and not _ranks_are_started(environment)


def _ranks_are_started(environment: Mapping[str, str]) -> bool:
    return "RANK" in environment or is_srun_step(environment)


def is_srun_step(environment: Mapping[str, str]) -> bool:
    """Return whether `srun` started this process."""
    return "SLURM_STEP_ID" in environment


def free_port() -> int:
    """Return a TCP port that no process of this machine has now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
