"""Trainings as jobs of a SLURM of several hosts."""

import re
import subprocess
import sys
from pathlib import Path

from testbed.hosts import Host
from testbed.slurm import HostsCluster
from testbed.waiting import wait_for
from tests.helpers.hold import Holds

MEMORY = "--mem=3000"
"""Of each node, in MB: a process of torch takes over 550."""


def run_on_login(
    cluster: HostsCluster, project: Path, *command: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command on the login node in a project's folder; `more` is for its environment."""
    return subprocess.run(
        cluster.command(*command, folder=project), env={**cluster.environment(), **more},
        capture_output=True, text=True,
    )  # fmt: skip


def sends_in_vain(host: Host, peer: Host) -> bool:
    """Return whether a host has sent something that a peer has not acknowledged."""
    lines = host.run("ss", "-Htn", "dst", peer.address).stdout.splitlines()
    return any(int(line.split()[2]) > 0 for line in lines)


class TrainingJob:
    """`smt train` in a batch job of two nodes, as a user submits it on the login node.

    With `holds` it can be held at a step.
    """

    def __init__(
        self,
        cluster: HostsCluster,
        project: Path,
        *arguments: str,
        per_node: int = 1,
        holds: Holds | None = None,
    ) -> None:
        self._cluster, self._log = cluster, project / "job.log"
        environment = {} if holds is None else holds.environment()
        command = " ".join(["exec", sys.executable, "-m", "smt", "train", *arguments])
        submitted = run_on_login(
            cluster, project, "sbatch", "--parsable", "--requeue", "--nodes=2", MEMORY,
            f"--ntasks-per-node={per_node}", "--open-mode=append", f"--output={self._log}",
            f"--wrap={command}", **environment,
        )  # fmt: skip
        assert submitted.returncode == 0, submitted.stderr
        self.id = submitted.stdout.strip()

    def field(self, name: str) -> str:
        """Return a field of `scontrol show job`."""
        output = self._cluster.run("scontrol", "show", "job", self.id).stdout
        match = re.search(rf"\b{name}=(\S*)", output)
        assert match is not None, output
        return match[1]

    def output(self) -> str:
        """Return what all of its attempts have printed."""
        return self._log.read_text() if self._log.exists() else ""

    def await_requeue(self, count: int = 1) -> None:
        """Wait until SLURM has requeued it so many times."""
        wait_for(lambda: int(self.field("Restarts")) >= count, self.output, every=0.2)

    def succeed(self) -> None:
        """Wait until it has ended, which must be with success."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
        state = wait_for(
            lambda: state if (state := self.field("JobState")) in ends else None,
            self.output, every=0.2,
        )  # fmt: skip
        assert state == "COMPLETED", f"{state}: {self.output()}"
