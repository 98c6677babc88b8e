"""The rendezvous of a job's ranks: MASTER_ADDR and MASTER_PORT, which `srun` passes to all."""

import os
import re
import socket
import subprocess


def rank_environment() -> dict[str, str]:
    """Return MASTER_ADDR and MASTER_PORT for an allocation of several tasks, and CPUs for srun.

    The command runs on the first node, where rank 0 will be. The address is the one that SLURM
    uses, since node names need not resolve; the port is one that is free on this node now.
    """
    variables = {}
    if "SLURM_CPUS_PER_TASK" in os.environ:
        # Since SLURM 22.05, srun does not inherit it from the allocation.
        variables["SRUN_CPUS_PER_TASK"] = os.environ["SLURM_CPUS_PER_TASK"]
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        variables["MASTER_ADDR"] = _address(os.environ.get("SLURMD_NODENAME", ""))
        variables["MASTER_PORT"] = str(_free_port())
    return variables


def _address(node: str) -> str:
    description = subprocess.run(
        ["scontrol", "show", "node", node], capture_output=True, text=True, check=False
    ).stdout
    match = re.search(r"NodeAddr=(\S+)", description)
    return match[1] if match else socket.gethostname()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
