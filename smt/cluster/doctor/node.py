"""What a node is like, and what that means for trainings.

The job of smt doctor runs `python -m smt.cluster.doctor.node FOLDER`, which leaves an answer there.
"""

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from smt import __version__
from smt.cluster.doctor.check_result import CheckResult, CheckResults, error, ok, warning
from smt.cluster.doctor.two_hosts import Measurements, agent_command, agents, measure
from smt.runs import source
from smt.runs.atomic import write_json
from smt.runs.paths import PACKAGE

ANSWER = "answer.json"

FILES = "files"
"""Folder in which two hosts compare what they see."""

CHECK = "smt.engine.gpu_check"
"""What looks at GPUs: it imports torch, which may fail, and is run in a process of its own."""


class Environment(NamedTuple):
    """What has to be the same here and on a node."""

    python: str
    """Version and path."""
    smt: str
    """Version and path."""
    code: dict[str, str]
    """A digest of each module that trains, and versions of libraries."""

    @classmethod
    def here(cls) -> "Environment":
        """Return that of this process."""
        return cls(
            python=f"{platform.python_version()} in {sys.prefix}",
            smt=f"{__version__} in {PACKAGE}",
            code=source.digests(),
        )


class Answer(NamedTuple):
    """What a job found on its node."""

    node: str
    environment: Environment
    gpus: dict[str, Any] | None
    """What `smt.engine.gpu_check` says of GPUs; None if PyTorch does not even load."""
    two_hosts: Measurements | None = None
    """What this node and the second one see of each other's files; None if the job has one node."""


def read_answer(folder: Path) -> Answer | None:
    """Return the answer that a job left in `folder`, or None where there is none yet."""
    list(folder.iterdir())  # a network disk looks again
    try:
        content = json.loads((folder / ANSWER).read_bytes())
    except FileNotFoundError:
        return None
    environment = Environment(**content["environment"])
    # Other code may have measured other things.
    two_hosts = content["two_hosts"] if environment == Environment.here() else None
    measurements = Measurements(**two_hosts) if two_hosts else None
    return Answer(content["node"], environment, content["gpus"], measurements)


def write_answer(folder: Path) -> None:
    """Write what there is to say of this node into `folder`."""
    two_hosts = _two_nodes(folder / FILES)
    content = {
        "node": os.environ.get("SLURMD_NODENAME", platform.node()),
        "environment": Environment.here()._asdict(),
        "gpus": _gpus(),
        "two_hosts": two_hosts and asdict(two_hosts),
    }
    write_json(folder / ANSWER, content)


def _two_nodes(folder: Path) -> Measurements | None:
    """Return what this node and the second one of the job see of each other's files."""
    if os.environ.get("SLURM_JOB_NUM_NODES", "1") == "1":
        return None
    step = ["srun", "--nodes=1", "--ntasks=1", "--relative=1"]
    here = agent_command(folder, "the first node")
    there = agent_command(folder, "the second node", step)
    with agents(here, there) as (first, second):
        return measure(first, second)


def _gpus() -> dict[str, Any] | None:
    done = subprocess.run([sys.executable, "-m", CHECK], capture_output=True, text=True)
    if done.returncode:
        return None
    gpus: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return gpus


# --- what it means for trainings ------------------------------------------------------------------


def environment_checks(answer: Answer) -> CheckResults:
    """The node runs the same Python, libraries and training code."""
    here, there = Environment.here(), answer.environment
    differences = [
        f"{name} {there_is} there, {here_is} here"
        for name, here_is, there_is in (
            ("Python", here.python, there.python),
            ("smt", here.smt, there.smt),
        )
        if here_is != there_is
    ] + source.changes(here.code, there.code)
    if differences:
        yield error(
            "environment",
            f"{answer.node} differs: {', '.join(differences[:3])}",
            "put the environment and this project on a shared disk: make env",
        )
    else:
        yield ok("environment", f"{answer.node} runs the same: smt {there.smt}")


_LEAST_SHARED = 2**30
"""Bytes of /dev/shm below which it is said: a container has 64 MB by default."""

_LOOK = "see there: nvidia-smi; python -m smt.engine.gpu_check; and the CUDA of this torch"


def gpu_checks(answer: Answer, needed: bool) -> CheckResults:
    """What PyTorch on the node makes of the GPU that the job asked for."""
    gpus = answer.gpus
    if gpus is None:
        yield error("gpu", f"PyTorch on {answer.node} does not load", _LOOK)
        return
    if gpus["count"] and gpus["problem"] is None:
        yield ok(
            "gpu",
            f"{answer.node} has {gpus['name']}, {gpus['memory_bytes'] / 2**30:.0f} GiB, driver "
            f"{gpus['driver']}: a step in fp32, tf32, bf16 and fp16 runs",
        )
    elif gpus["count"]:
        yield error("gpu", f"{answer.node}: {gpus['problem']}", _LOOK)
    else:
        text = f"PyTorch on {answer.node} sees none of the GPUs asked for"
        if needed:
            yield error("gpu", f"{text}: {gpus['problem'] or 'none is there'}", _LOOK)
        else:
            yield warning("gpu", text, "nothing to do: at this scale it takes the CPU")
    yield _exchange(answer.node, gpus)
    shared = gpus["shared_memory_bytes"]
    if shared < _LEAST_SHARED:
        yield warning(
            "/dev/shm",
            f"{shared / 2**20:.0f} MB are left on {answer.node}, through which data workers hand "
            "over their batches",
            "give it more (of a container: --shm-size), or train with --workers 0",
        )


def _exchange(node: str, gpus: dict[str, Any]) -> CheckResult:
    """What became of two processes that added up a tensor there."""
    problem = gpus["exchange_problem"]
    if problem is not None:
        return error(
            "exchange",
            f"two processes on {node} cannot exchange gradients: {problem}",
            "see there: NCCL_DEBUG=INFO python -m smt.engine.gpu_check",
        )
    way = "NCCL, with a GPU each" if gpus["count"] >= 2 else "gloo, on its CPU"
    return ok("exchange", f"two processes on {node} exchange gradients through {way}")


if __name__ == "__main__":
    write_answer(Path(sys.argv[1]))
