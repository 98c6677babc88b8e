"""The time of each part of a job that runs through the executor `submitit`."""

import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import mean

from submission_runs import Case, Run, Site, start_times, wait

PARTS = (
    "sbatch",
    "SLURM, until it allocates the job",
    "SLURM, until the job's shell begins",
    "Python starts and imports submitit",
    "job step, until the rule begins",
    "job step, until it has ended",
    "until the driver notices",
)
"""Of one job, in this order, from the start of its sbatch."""

SETUP = 'echo "begins $EPOCHREALTIME"'

SBATCH = """\
#!/bin/bash
begin=$EPOCHREALTIME
output=$({program} "$@")
code=$?
echo "$output"
echo "${{output##* }} $begin $EPOCHREALTIME" >> {stamps}
exit $code
"""


@dataclass(frozen=True)
class Parts:
    """Seconds."""

    before: float
    """From the start of the driver to its first sbatch."""
    job: list[float]
    """PARTS, each the mean of all jobs."""
    after: float
    """From the last job that the driver notices to its end."""


def measure(site: Site, case: Case, count: int) -> tuple[Run, Parts | None]:
    """Run a case once more, with a stamp at each point; no parts if the run has failed.

    Its jobs keep their logs and print when their shell begins, its sbatch is a wrapper that records
    when it was called, and the driver's lines get a time stamp.
    """
    observed = replace(
        case,
        command=(*case.command, "--submitit-keep-logs", "all", "--submitit-setup", SETUP),
    )
    folder = site.new_folder(case, count)
    (folder / "bin").mkdir()
    program = site.program("sbatch")
    text = SBATCH.format(program=program, stamps=folder / "sbatch.stamps")
    site.write_program(folder / "bin" / "sbatch", text)
    lines: list[tuple[float, str]] = []
    span = [0.0, 0.0]

    def launch(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, float]:
        environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}"
        span[0] = time.time()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        with (folder / "driver.log").open("w") as log:
            for line in process.stdout:
                lines.append((time.time(), line.decode(errors="replace").rstrip()))
                print(*lines[-1], file=log)
        outcome = wait(process)
        span[1] = time.time()
        return outcome

    run = site.run(observed, count, folder, launch)
    return run, None if run.problem else _parts(site, folder, lines, span)


def _parts(site: Site, folder: Path, lines: list[tuple[float, str]], span: list[float]) -> Parts:
    submitted = {}
    for line in (folder / "sbatch.stamps").read_text().splitlines():
        job, *stamps = line.split()
        submitted[job] = [float(stamp) for stamp in stamps]
    allocated = _allocated(site.cluster.folder.log("slurmctld"))
    noticed = _noticed(lines)
    rows = []
    for number, (job, rule) in start_times(folder).items():
        begun, loaded, finished = _job_log(folder / ".snakemake" / "submitit" / f"{job}_0_log.out")
        # SLURM may allocate a job before its sbatch has come to an end.
        called, answered = submitted[job]
        points = [called, answered, max(allocated[job], answered), begun, loaded, rule, finished,
                  noticed[number]]  # fmt: skip
        rows.append([later - earlier for earlier, later in pairwise(points)])
    return Parts(
        before=min(begin for begin, _ in submitted.values()) - span[0],
        job=[mean(column) for column in zip(*rows, strict=True)],
        after=span[1] - max(noticed.values()),
    )


def _allocated(log: Path) -> dict[str, float]:
    """Return when the controller allocated each job, from its log."""
    pattern = r"^\[(\S+)\] .*(?:Started|Allocate) JobId=(\d+) "
    matches = re.findall(pattern, log.read_text(errors="replace"), flags=re.M)
    return {job: datetime.fromisoformat(stamp).timestamp() for stamp, job in matches}


def _noticed(lines: Iterable[tuple[float, str]]) -> dict[int, float]:
    """Return when the driver reported each job of rule `one` as finished."""
    numbers: dict[str, int] = {}
    finished = {}
    job = ""
    for stamp, line in lines:
        if match := re.fullmatch(r"    jobid: (\d+)", line):
            job = match[1]
        elif match := re.fullmatch(r"    wildcards: number=(\d+)", line):
            numbers[job] = int(match[1])
        elif (match := re.match(r"Finished jobid: (\d+) ", line)) and match[1] in numbers:
            finished[numbers[match[1]]] = stamp
    return finished


def _job_log(path: Path) -> tuple[float, float, float]:
    """Return when the job's shell began, submitit was ready, and the command had ended."""
    text = path.read_text(errors="replace")
    begun = re.search(r"^begins ([\d.]+)$", text, flags=re.M)
    stamps = {
        event: datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()
        for stamp, event in re.findall(
            r"^submitit INFO \((.*?)\) - (Loading|Job)", text, flags=re.M
        )
    }
    assert begun, path
    return float(begun[1]), stamps["Loading"], stamps["Job"]
