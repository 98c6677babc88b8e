"""How the ranks of a job find each other: variables that `srun` hands on to all of them."""

import os
import re
import socket
import subprocess


def environment_of_ranks() -> dict[str, str]:
    """Return MASTER_ADDR and MASTER_PORT of an allocation of several tasks, and what srun needs.

    The command runs on the first node, where rank 0 will be: its address is as SLURM knows it, for
    names of nodes need not resolve, and its port is one that is free here now.
    """
    variables = {}
    if "SLURM_CPUS_PER_TASK" in os.environ:
        # srun has not taken over the allocation's own since SLURM 22.05.
        variables["SRUN_CPUS_PER_TASK"] = os.environ["SLURM_CPUS_PER_TASK"]
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        variables["MASTER_ADDR"] = _address(os.environ.get("SLURMD_NODENAME", ""))
        variables["MASTER_PORT"] = str(_free_port())
    return variables


def _address(node: str) -> str:
    shown = subprocess.run(
        ["scontrol", "show", "node", node], capture_output=True, text=True, check=False
    )
    found = re.search(r"NodeAddr=(\S+)", shown.stdout)
    return found[1] if found else socket.gethostname()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
