"""Finding the processes of a node among those of this host."""

from contextlib import suppress

import psutil

from testbed.processes import process_tree

from .folder import NODES, Folder


def node_processes(folder: Folder, node: str | None = None) -> list[psutil.Process]:
    """Return the processes of slurmd, slurmstepd and jobs on all nodes of a cluster, or on one."""
    processes: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["name", "environ"]):
        is_step = process.info["name"] == "slurmstepd"
        process_node = (_node_of_step if is_step else _node_of_process)(process, folder)
        if process_node is not None and node in (None, process_node):
            processes.update((member.pid, member) for member in process_tree(process))
    return list(processes.values())


def _node_of_process(process: psutil.Process, folder: Folder) -> str | None:
    """Return the node in a process's environment, where slurmd sets it, unlike a user's shell."""
    environment = process.info["environ"] or {}
    if environment.get("SLURM_CONF") != str(folder.slurm_conf):
        return None
    return environment.get("SLURMD_NODENAME")


def _node_of_step(process: psutil.Process, folder: Folder) -> str | None:
    """Return a slurmstepd's node from its log: it overwrites its environment with its title."""
    with suppress(psutil.Error):
        paths = {file.path for file in process.open_files()}
        return next((node for node in NODES if str(folder.log(node)) in paths), None)
    return None
