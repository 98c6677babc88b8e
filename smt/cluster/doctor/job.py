"""A job of a minute: it looks at the results folder and the Python environment from nodes.

It takes two nodes, which compare what they see of each other's files. Where no two are to be had,
it takes one, and then this machine and a node compare.
"""

import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from smt.cluster.doctor import file_system, node
from smt.cluster.doctor.check_result import CheckResults, error, ok, warning
from smt.cluster.doctor.node import Answer
from smt.cluster.doctor.request import Destination
from smt.cluster.doctor.two_hosts import agent_command, agents, measure
from smt.cluster.slurm import Slurm, facts
from smt.runs.atomic import explained
from snakemake_executor_plugin_submitit.slurm import environment

_TOKEN, _COPY, _OUTPUT = "token", "copy", "output.txt"

_SCRIPT = """\
#!/bin/sh
cat {token} > {copy} || exit 1
exec {python} -m smt.cluster.doctor.node {folder}
"""

_SHOW_JOB = ("scontrol", "show", "job", "--oneliner")

_DELAY = 15.0
"""Seconds after which a network disk shows what another host wrote."""

_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")

_WAIT_LONGER = "wait for longer: smt doctor --wait 3600; or leave this out: --no-job"


class JobOptions(NamedTuple):
    """What the job asks for."""

    destination: Destination
    """Where it goes."""
    gpus_per_node: int
    """Two are enough for an exchange of gradients."""
    wait: float
    """Seconds for which it may wait in the queue."""

    def of_nodes(self, nodes: int) -> list[str]:
        """Return the options of sbatch and srun for the job on so many nodes."""
        return [
            *self.destination.options(), "--job-name=smt-doctor", f"--nodes={nodes}", "--time=5",
            "--ntasks-per-node=1", "--mem=3000M", f"--gpus-per-node={self.gpus_per_node}",
        ]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """The job, and what became of it."""

    job_id: str
    facts: dict[str, str]
    """As scontrol has them."""

    @property
    def state(self) -> str:
        return self.facts["JobState"]

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    def __str__(self) -> str:
        return f"job {self.job_id}"


def from_a_node(slurm: Slurm, options: JobOptions, results: Path, *, gpus: bool) -> CheckResults:
    """Nodes see the results folder, agree on what is in it, and run the same Python environment.

    Without `gpus`, trainings do not need them, and their absence is no error.
    """
    with _folder(results) as folder:
        yield from _checks(slurm, folder, options, gpus)
    if os.path.lexists(folder):
        yield warning("folder", f"{folder} could not be removed", f"rm -r {folder}")


@contextmanager
def _folder(results: Path) -> Iterator[Path]:
    """Make a folder with a file to read in the results; in the end, remove what can be removed."""
    folder = results.resolve() / f".doctor-{secrets.token_hex(4)}"
    try:
        with explained(folder, "give a results folder that can be written: SMT_RESULTS"):
            (folder / node.FILES).mkdir(parents=True)
            (folder / _TOKEN).write_text(secrets.token_hex(16))
        yield folder
    finally:
        deadline = time.monotonic() + _DELAY
        shutil.rmtree(folder, ignore_errors=True)
        while os.path.lexists(folder) and time.monotonic() < deadline:
            time.sleep(0.2)  # a job that was cancelled still writes, or a listing is outdated
            shutil.rmtree(folder, ignore_errors=True)


def _checks(slurm: Slurm, folder: Path, options: JobOptions, gpus: bool) -> CheckResults:
    job, why_one_node = _run(slurm, folder, options)
    if not job.has_ended:
        yield warning(
            "node",
            f"{job} was {job.state} after {options.wait:.0f} s ({job.facts['Reason']}), and is "
            "cancelled; nothing was seen from a node",
            _WAIT_LONGER,
        )
        return
    if job.facts["Requeue"] == "0":
        yield error(
            "requeue",
            f"{job} asked for it, and the cluster has turned it off",
            "ask who runs the cluster; without it, trainings end at their time limit",
        )
    answer = _await_answer(job, folder)
    yield from _folder_checks(job, folder, answer)
    if answer is None:
        return
    yield from node.environment_checks(answer)
    if answer.two_hosts is not None:
        yield from file_system.checks(answer.two_hosts)
    elif why_one_node:
        yield from _this_host_and_a_node(folder / node.FILES, options, why_one_node)
    yield from node.gpu_checks(answer, gpus)


def _run(slurm: Slurm, folder: Path, options: JobOptions) -> tuple[Job, str]:
    """Return the job, and why it has but one node; empty if it has two."""
    test = slurm.ask("sbatch", "--test-only", *options.of_nodes(2), "--wrap=true")
    if not test.succeeded:
        return _run_on(1, slurm, folder, options, options.wait), test.reason
    job = _run_on(2, slurm, folder, options, options.wait / 2)
    if job.has_ended:
        return job, ""
    why = f"two nodes were not free within {options.wait / 2:.0f} s"
    return _run_on(1, slurm, folder, options, options.wait / 2), why


def _run_on(nodes: int, slurm: Slurm, folder: Path, options: JobOptions, wait: float) -> Job:
    """Return the job when it has ended; one that has not begun after `wait` seconds is cancelled.

    Raises:
        UserError: SLURM does not take it.
    """
    job_id = _submit(slurm, folder, options.of_nodes(nodes))
    job = None
    try:
        job = _await_end(slurm, job_id, wait)
    finally:
        if job is None or not job.has_ended:  # or Ctrl-C, or SLURM is gone
            slurm.ask("scancel", job_id)
    return job


def _submit(slurm: Slurm, folder: Path, options: list[str]) -> str:
    names = {"token": folder / _TOKEN, "copy": folder / _COPY, "folder": folder}
    quoted = {name: shlex.quote(str(path)) for name, path in names.items()}
    script = folder / "job.sh"
    script.write_text(_SCRIPT.format(**quoted, python=shlex.quote(sys.executable)))
    output = f"--output={folder / _OUTPUT}"
    answer = slurm.read("sbatch", *options, "--parsable", "--requeue", output, str(script))
    return answer.strip().partition(";")[0]


def _await_end(slurm: Slurm, job_id: str, wait: float) -> Job:
    """Return the job when it has ended, or has not even begun after `wait` seconds."""
    deadline = time.monotonic() + wait
    job = Job(job_id, facts(slurm.read(*_SHOW_JOB, job_id)))
    while not job.has_ended:
        if time.monotonic() > deadline and job.state != "RUNNING":
            return job
        time.sleep(0.5)
        answer = slurm.ask(*_SHOW_JOB, job_id)
        if answer.succeeded:
            job = Job(job_id, facts(answer.text))
        elif "Invalid job id" in answer.text:  # it ended, and SLURM has forgotten it
            job = Job(job_id, {**job.facts, "JobState": "COMPLETED"})
    return job


def _await_answer(job: Job, folder: Path) -> Answer | None:
    deadline = time.monotonic() + (_DELAY if job.state == "COMPLETED" else 2)
    while (answer := node.read_answer(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return answer


def _folder_checks(job: Job, folder: Path, answer: Answer | None) -> CheckResults:
    host = job.facts.get("BatchHost", "the node")
    if answer is None and not (folder / _COPY).exists():
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


def _last_line(output: Path) -> str:
    try:
        return output.read_text(errors="replace").strip().splitlines()[-1]
    except (OSError, IndexError):
        return "no message"


def _this_host_and_a_node(files: Path, options: JobOptions, why: str) -> CheckResults:
    """The same with this machine as the first host, where no two nodes were to be had."""
    here = agent_command(files, "this machine")
    there = agent_command(files, "a node", ["srun", *options.of_nodes(1)], environment())
    with agents(here, there) as (first, second):
        measurements = measure(first, second, start_timeout=options.wait)
    if measurements.hosts is None:
        yield warning(
            "hosts", f"no two hosts compared their files: {measurements.problem}", _WAIT_LONGER
        )
    else:
        yield from file_system.checks(measurements, f"no two nodes: {why}")
