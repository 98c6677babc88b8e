"""One measured run of a toy workflow on a real SLURM, by any of several executors."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from testbed.slurm import Cluster

PACKAGES = (
    "snakemake-executor-plugin-slurm==2.8.0",
    "snakemake-executor-plugin-slurm-jobstep==0.6.1",
)
"""The baseline. What they need besides is in this environment: it belongs to Snakemake or to us."""

SNAKEFILE = """\
rule all:
    localrule: True
    input: expand("out/{{number}}", number=range({count}))

rule one:
    output: "out/{{number}}"
    resources: runtime=5, mem_mb=500
    shell: 'echo "$SLURM_JOB_ID $EPOCHREALTIME" >> ran/{{wildcards.number}} && touch {{output}}'
"""

LIMIT = 1800.0
"""Seconds until a run that does not end is ended."""

SETTLING = 60.0
"""Seconds to wait for accounting to record the end of jobs."""


class MissingBaseline(Exception):
    """The other plugin is missing; the message says what to do."""


@dataclass(frozen=True)
class Case:
    """One way to run the jobs."""

    key: str
    title: str
    command: tuple[str, ...]
    """Of the driver; `{count}` stands for the number of jobs."""
    baseline: bool = False
    """Whether it is by the other plugin, which then is on its path."""


@dataclass(frozen=True)
class Run:
    """Measurements of one run. CPU-seconds are sums over all jobs."""

    case: str
    count: int
    seconds: float
    """From the start of the driver to its end."""
    driver: float
    """CPU-seconds of the driver and of all that it started and waited for (wait4)."""
    jobs: float
    """CPU-seconds of the jobs' steps and all below them (TotalCPU of sacct)."""
    controller: float
    """CPU-seconds of slurmctld, slurmdbd and its database meanwhile."""
    elsewhere: float
    """CPUs of this machine that others kept busy meanwhile; slurmd and slurmstepd count as such."""
    slurm_jobs: int
    problem: str | None
    """Why it does not count, or None."""


Launch = Callable[[list[str], Path, dict[str, str]], tuple[int, float]]
"""Runs a command in a folder, with an environment; returns its exit code and its CPU-seconds."""


def launch(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, float]:
    """Run a driver whose output goes to driver.log; end it after LIMIT."""
    with (folder / "driver.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return wait(process)


def wait(process: "subprocess.Popen[bytes]") -> tuple[int, float]:
    """Wait for a driver; return its exit code and its CPU-seconds."""
    timer = threading.Timer(LIMIT, process.kill)
    timer.start()
    _, status, usage = os.wait4(process.pid, 0)
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


class Site:
    """A cluster and a folder where runs take place, one after the other."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self._plugin, self._programs = folder / "plugin", folder / "bin"
        self._runs, self._last_job = 0, 0
        shutil.rmtree(folder / "runs", ignore_errors=True)

    def install_baseline(self) -> None:
        """Install the other plugin in a folder of its own, unless it is there.

        Raises:
            MissingBaseline: pip cannot.
        """
        self._programs.mkdir(exist_ok=True)
        # The other plugin removes SLURM_CONF, with all of SLURM_*, from what the srun in its jobs
        # sees, which then finds only a cluster that is configured in /etc.
        srun = self.program("srun")
        self.write_program(
            self._programs / "srun",
            f'#!/bin/sh\nSLURM_CONF="{self.cluster.slurm_conf}" exec {srun} "$@"\n',
        )
        names = [package.replace("-", "_").replace("==", "-") for package in PACKAGES]
        if all((self._plugin / f"{name}.dist-info").exists() for name in names):
            return
        install = ["install", "--quiet", "--no-deps", "--target", str(self._plugin), *PACKAGES]
        process = subprocess.run(
            [sys.executable, "-m", "pip", *install], capture_output=True, text=True, check=False
        )
        if process.returncode:
            message = (process.stderr.strip().splitlines() or ["nothing"])[-1]
            raise MissingBaseline(
                f"pip cannot install the baseline ({message}); where it can, run: pip "
                f"{' '.join(install)}, bring that folder here, and add: --folder {self.folder}"
            )

    def program(self, name: str) -> str:
        """Return where a program of SLURM lies."""
        return str(shutil.which(name, path=self.cluster.environment()["PATH"]))

    @staticmethod
    def write_program(path: Path, text: str) -> None:
        """Make a program out of a script."""
        path.write_text(text)
        path.chmod(0o755)

    def new_folder(self, case: Case, count: int) -> Path:
        """Return an empty folder with the toy workflow."""
        self._runs += 1
        folder = self.folder / "runs" / f"{self._runs:03d}-{case.key}-{count}"
        (folder / "ran").mkdir(parents=True)
        (folder / "Snakefile").write_text(SNAKEFILE.format(count=count))
        return folder

    def environment(self, case: Case) -> dict[str, str]:
        """Return the environment of a driver, with no plugin but those that it is to have."""
        environment = self.cluster.environment()
        for name in ("PYTHONPATH", "SNAKEMAKE_PROFILE"):
            environment.pop(name, None)
        if case.baseline:
            environment["PYTHONPATH"] = str(self._plugin)
            environment["PATH"] = f"{self._programs}:{environment['PATH']}"
        return environment

    def run(self, case: Case, count: int, folder: Path, launch: Launch = launch) -> Run:
        """Run `count` jobs, and wait until accounting has their end."""
        command = [word.replace("{count}", str(count)) for word in case.command]
        controller, busy, start = self._controller(), _busy(), time.monotonic()
        code, driver = launch(command, folder, self.environment(case))
        seconds = time.monotonic() - start
        states, jobs, unsettled = self._accounting({job for job, _ in start_times(folder).values()})
        whole, controller = time.monotonic() - start, self._controller() - controller
        problem = _problem(folder, count, code, states) or unsettled
        if problem:
            self.cluster.run("scancel", "--me", check=False)
        elsewhere = max(_busy() - busy - driver - jobs - controller, 0) / whole
        return Run(
            case.key, count, seconds, driver, jobs, controller, elsewhere, len(states), problem
        )

    def _controller(self) -> float:
        """Return the CPU-seconds of SLURM's controller and its accounting up to now."""
        pids = self.cluster.pids()
        times = [
            psutil.Process(pid).cpu_times()
            for name, pid in pids.items()
            if name in ("slurmctld", "slurmdbd", "mariadbd")
        ]
        return sum(process.user + process.system for process in times)

    def _accounting(self, expected: set[str]) -> tuple[dict[str, str], float, str | None]:
        """Return the state of each new job, the CPU-seconds of all, and a problem or None."""
        deadline = time.monotonic() + SETTLING
        while True:
            states, cpu = self._accounted()
            waiting = expected - set(states) or {
                job for job, state in states.items() if state in ("PENDING", "RUNNING")
            }
            if not waiting or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        self._last_job = max([self._last_job, *map(int, states)])
        unsettled = f"accounting does not know the end of {len(waiting)} jobs" if waiting else None
        return states, cpu, unsettled

    def _accounted(self) -> tuple[dict[str, str], float]:
        output = self.cluster.run(
            "sacct", "--noheader", "--parsable2", "--format=JobIDRaw,State,TotalCPU",
            "--starttime=now-1days",
        ).stdout  # fmt: skip
        states, cpu = {}, 0.0
        for line in output.splitlines():
            name, state, total = line.split("|")
            job, _, step = name.partition(".")
            if int(job) <= self._last_job:
                continue
            if not step:
                states[job] = state.split()[0]
            elif state.startswith("RUNNING"):
                states[job] = "RUNNING"
            else:
                cpu += _seconds(total)
        return states, cpu


def start_times(folder: Path) -> dict[int, tuple[str, float]]:
    """Return the SLURM job id and the start (Unix seconds) of each job that started."""
    starts = {}
    for path in (folder / "ran").iterdir():
        job, stamp = path.read_text().splitlines()[-1].split()
        starts[int(path.name)] = (job, float(stamp))
    return starts


def _problem(folder: Path, count: int, code: int, states: dict[str, str]) -> str | None:
    """Return why a run does not count, or None if every job has run once and all went well."""
    log = folder / "driver.log"
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return f"exit code {code}, see {log}: {lines[-1] if lines else 'no output'}"
    bad = sorted({state for state in states.values() if state != "COMPLETED"})
    if bad:
        return f"jobs that are {', '.join(bad)}, see {log}"
    numbers = {str(number) for number in range(count)}
    outputs = {path.name for path in folder.glob("out/*")}
    starts = {path.name: len(path.read_text().splitlines()) for path in (folder / "ran").iterdir()}
    if outputs != numbers or set(starts) != numbers:
        return f"{len(outputs)} of {count} outputs exist, {len(starts)} jobs started, see {log}"
    more = [name for name, times in starts.items() if times != 1]
    return f"{len(more)} jobs ran more than once, see {log}" if more else None


def _busy() -> float:
    """Return the CPU-seconds that this machine has spent up to now, on all processes."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq + times.steal


def _seconds(duration: str) -> float:
    """Return seconds of a duration as sacct writes it: [[days-]hours:]minutes:seconds."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):([\d.]+)", duration)
    assert match, duration
    days, hours, minutes = (int(value or 0) for value in match.groups()[:3])
    return ((days * 24 + hours) * 60 + minutes) * 60 + float(match[4])
