"""A tiny job, to see the results folder and the Python environment from a node.

The job runs `python -m smt.cluster.doctor.node FOLDER`, which leaves there what its node is like.
"""

import json
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from smt import __version__
from smt.cluster.doctor.check_result import CheckResult, CheckResults, error, ok, warning
from smt.cluster.doctor.request import Destination
from smt.cluster.slurm import Slurm, facts
from smt.runs import source
from smt.runs.atomic import explained, write_json
from smt.runs.paths import PACKAGE

# --- on the node ----------------------------------------------------------------------------------

ANSWER = "answer.json"

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


def read_answer(folder: Path) -> Answer | None:
    """Return the answer that a job left in `folder`, or None where there is none yet."""
    list(folder.iterdir())  # a network disk looks again
    try:
        content = json.loads((folder / ANSWER).read_bytes())
    except FileNotFoundError:
        return None
    return Answer(content["node"], Environment(**content["environment"]), content["gpus"])


def answer_here() -> Answer:
    """Return what there is to say of this node."""
    node = os.environ.get("SLURMD_NODENAME", platform.node())
    return Answer(node, Environment.here(), _gpus())


def _gpus() -> dict[str, Any] | None:
    done = subprocess.run([sys.executable, "-m", CHECK], capture_output=True, text=True)
    if done.returncode:
        return None
    gpus: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return gpus


# --- here -----------------------------------------------------------------------------------------

_ASK, _SEEN, _OUTPUT = "ask", "seen", "output.txt"

_SCRIPT = """\
#!/bin/sh
cat {ask} > {seen} || exit 1
exec {python} -m smt.cluster.doctor.node {folder}
"""

_SHOW_JOB = ("scontrol", "show", "job", "--oneliner")

_DELAY = 15.0
"""Seconds after which a network disk shows what another host wrote."""

_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")


@dataclass(frozen=True)
class Job:
    """The tiny job, and what became of it."""

    job_id: str
    facts: dict[str, str]
    """As scontrol has them."""

    @property
    def state(self) -> str:
        return self.facts["JobState"]

    def __str__(self) -> str:
        return f"job {self.job_id}"


def from_a_node(
    slurm: Slurm, wanted: Destination, results: Path, *, gpus: bool, gpus_per_node: int, wait: float
) -> CheckResults:
    """A node sees the results folder, and runs the same Python environment.

    Args:
        slurm: The cluster.
        wanted: Where to submit the job.
        results: The results folder, as this machine sees it.
        gpus: Whether trainings need GPUs; else their absence is said, and no error.
        gpus_per_node: As many of a node as a training asks for; the job takes two at most.
        wait: Seconds for which the job may wait in the queue.
    """
    with _folder(results) as folder:
        job_id = _submit(slurm, wanted, folder, min(2, gpus_per_node))
        try:
            job = _await_end(slurm, job_id, wait)
        except BaseException:  # Ctrl-C, or SLURM is gone
            slurm.ask("scancel", job_id)
            raise
        if job.state not in _ENDED:
            slurm.ask("scancel", job_id)
            yield warning(
                "node",
                f"{job} was {job.state} after {wait:.0f} s ({job.facts['Reason']}), and is "
                "cancelled; nothing was seen from a node",
                "wait for longer: smt doctor --wait 3600; or leave this out: --no-job",
            )
            return
        if job.facts["Requeue"] == "0":
            yield error(
                "requeue",
                f"{job} asked for it, and the cluster has turned it off",
                "ask who runs the cluster; without it, trainings end at their time limit",
            )
        yield from _seen(job, folder, gpus)


@contextmanager
def _folder(results: Path) -> Iterator[Path]:
    """Make a folder with a file to read in the results, and remove it in the end."""
    folder = results.resolve() / f".doctor-{secrets.token_hex(4)}"
    with explained(folder, "give a results folder that can be written: SMT_RESULTS"):
        folder.mkdir(parents=True)
    try:
        (folder / _ASK).write_text(secrets.token_hex(16))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _submit(slurm: Slurm, wanted: Destination, folder: Path, gpus: int) -> str:
    """Submit the job; return its id.

    Raises:
        UserError: SLURM does not take it.
    """
    names = {"ask": folder / _ASK, "seen": folder / _SEEN, "folder": folder}
    quoted = {name: shlex.quote(str(path)) for name, path in names.items()}
    script = folder / "job.sh"
    script.write_text(_SCRIPT.format(**quoted, python=shlex.quote(sys.executable)))
    options = [
        "--job-name=smt-doctor", "--parsable", "--requeue", "--nodes=1", "--ntasks=1", "--time=5",
        "--mem=3000M", f"--gpus-per-node={gpus}", f"--output={folder / _OUTPUT}",
    ]  # fmt: skip
    answer = slurm.read("sbatch", *options, *wanted.options(), str(script))
    return answer.strip().partition(";")[0]


def _await_end(slurm: Slurm, job_id: str, wait: float) -> Job:
    """Return the job when it has ended, or has not even begun after `wait` seconds."""
    deadline = time.monotonic() + wait
    job = Job(job_id, facts(slurm.read(*_SHOW_JOB, job_id)))
    while job.state not in _ENDED:
        if time.monotonic() > deadline and job.state != "RUNNING":
            return job
        time.sleep(0.5)
        answer = slurm.ask(*_SHOW_JOB, job_id)
        if answer.succeeded:
            job = Job(job_id, facts(answer.text))
        elif "Invalid job id" in answer.text:  # it ended, and SLURM has forgotten it
            job = Job(job_id, {**job.facts, "JobState": "COMPLETED"})
    return job


def _seen(job: Job, folder: Path, gpus: bool) -> CheckResults:
    host = job.facts.get("BatchHost", "the node")
    answer = _await_answer(job, folder)
    if answer is None and not (folder / _SEEN).exists():
        yield error(
            "folder",
            f"{host} cannot see and write {folder.parent} as this machine does ({job}, "
            f"{job.state}, left nothing there)",
            "give a folder that is on a shared disk: SMT_RESULTS",
        )
        return
    yield ok("folder", f"{host} sees and writes {folder.parent}")
    if answer is None:
        yield error(
            "environment",
            f"{host} cannot run {sys.executable} -m smt: {_last_line(folder / _OUTPUT)}",
            "put the environment and this project on a shared disk: make env",
        )
        return
    yield from _environment(answer)
    yield from of_gpus(answer, gpus)


def _await_answer(job: Job, folder: Path) -> Answer | None:
    deadline = time.monotonic() + (_DELAY if job.state == "COMPLETED" else 2)
    while (answer := read_answer(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return answer


def _environment(answer: Answer) -> CheckResults:
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


def of_gpus(answer: Answer, needed: bool) -> CheckResults:
    """What PyTorch on the node makes of the GPU that the job asked for."""
    found = answer.gpus
    if found is None:
        yield error("gpu", f"PyTorch on {answer.node} does not load", _LOOK)
        return
    if found["count"] and found["problem"] is None:
        yield ok(
            "gpu",
            f"{answer.node} has {found['name']}, {found['memory_bytes'] / 2**30:.0f} GiB, driver "
            f"{found['driver']}: a step in fp32, tf32, bf16 and fp16 runs",
        )
    elif found["count"]:
        yield error("gpu", f"{answer.node}: {found['problem']}", _LOOK)
    else:
        text = f"PyTorch on {answer.node} sees none of the GPUs asked for"
        if needed:
            yield error("gpu", f"{text}: {found['problem'] or 'none is there'}", _LOOK)
        else:
            yield warning("gpu", text, "nothing to do: at this scale it takes the CPU")
    yield _exchange(answer.node, found)
    shared = found["shared_memory_bytes"]
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


def _last_line(output: Path) -> str:
    try:
        return output.read_text(errors="replace").strip().splitlines()[-1]
    except (OSError, IndexError):
        return "no message"


if __name__ == "__main__":
    answer = answer_here()
    write_json(
        Path(sys.argv[1]) / ANSWER,
        {**answer._asdict(), "environment": answer.environment._asdict()},
    )
