"""How long 1, 24 and 100 jobs of a moment take through SLURM, from `snakemake` to its end.

`python benchmarks/submission.py` starts a SLURM of two nodes on this machine and prints, for each
number of jobs, wall seconds and CPU-seconds a job of this project's executor `submitit` over those
of snakemake-executor-plugin-slurm (which is installed beside, not into, this environment), with its
defaults and as quick as its options make it, all with the same Snakemake. As a floor, the same jobs
by submitit without a DAG. The ways take turns. Then, where the time of one job goes.

It counts only runs in which every job has run exactly once, and fails if any other happened.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import submission_parts
from submission_parts import PARTS, Parts
from submission_runs import PACKAGES, Case, MissingBaseline, Run, Site

from testbed.slurm import Cluster, ClusterError

SNAKEMAKE = (sys.executable, "-m", "snakemake", "--jobs", "100")
BASELINE = (*SNAKEMAKE, "--executor", "slurm")
TUNED = (
    *BASELINE,
    *("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1"),
    *("--max-status-checks-per-second", "100", "--slurm-status-command", "squeue"),
    *("--slurm-no-account", "--scheduler", "greedy"),
)
OURS = (*SNAKEMAKE, "--executor", "submitit")
GROUPS = ("--groups", "one=small", "--group-components", "small=8")
ALONE = (sys.executable, str(Path(__file__).with_name("submission_alone.py")))

CASES = (
    Case("a", "slurm plugin, defaults", BASELINE, baseline=True),
    Case("b", "slurm plugin, quickest", TUNED, baseline=True),
    Case("b8", "  the same, groups of 8", (*TUNED, *GROUPS), baseline=True),
    Case("c", "submitit, defaults", OURS),
    Case("d", "submitit, groups of 8", (*OURS, *GROUPS)),
    Case("e", "no DAG: submitit alone", (*ALONE, "loop", "{count}")),
    Case("ea", "  the same, one array", (*ALONE, "array", "{count}")),
)
OWN = next(case for case in CASES if case.key == "c")


def measure(site: Site, counts: Sequence[int], rounds: dict[bool, int]) -> Iterator[Run]:
    """Yield runs of all cases, which take turns; `rounds` of each, of the baseline's and others."""
    for round_ in range(max(rounds.values())):
        cases = [case for case in CASES if round_ < rounds[case.baseline]]
        for count in counts:
            for case in random.Random(f"{round_} {count}").sample(cases, len(cases)):
                run = site.run(case, count, site.new_folder(case, count))
                print_run(f"round {round_ + 1}, {_jobs(count)}, {case.title.strip()}", run)
                yield run


def print_run(label: str, run: Run) -> None:
    """Say on stderr how a run went."""
    how = f"failed: {run.problem}" if run.problem else f"{run.seconds:.1f} s"
    print(f"submission: {label}: {how}", file=sys.stderr, flush=True)


def print_times(runs: Sequence[Run], count: int) -> None:
    """Print the table of one number of jobs: medians, and their ratios to both baselines."""
    by_case: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.count == count:
            by_case[run.case].append(run)
    good = {
        key: [run for run in runs_of_case if not run.problem]
        for key, runs_of_case in by_case.items()
    }
    wall = {
        key: median(run.seconds for run in runs_of_case)
        for key, runs_of_case in good.items()
        if runs_of_case
    }
    print(f"\n{_jobs(count)}".ljust(33) + _HEADER)
    for case in CASES:
        failed = len(by_case[case.key]) - len(good[case.key])
        line = f"{case.key:<3} {case.title}".ljust(32)
        if case.key in wall:
            line += _row(good[case.key], wall[case.key], wall.get("a"), wall.get("b"))
        print(line + (f"   FAILED: {failed} of {len(by_case[case.key])} runs" if failed else ""))


_HEADER = " wall s   of a   of b   CPU-s a job: driver    jobs   controller   others   runs"


def _row(runs: Sequence[Run], wall: float, default: float | None, tuned: float | None) -> str:
    ratios = (
        f"{wall / baseline:7.2f}" if baseline else f"{'-':>7}" for baseline in (default, tuned)
    )
    parts = [
        median(getattr(run, name) / run.count for run in runs)
        for name in ("driver", "jobs", "controller")
    ]
    whole = median((run.driver + run.jobs) / run.count for run in runs)
    other_load = median(run.elsewhere for run in runs)
    return (
        f"{wall:7.1f}{''.join(ratios)}{whole:14.2f}{parts[0]:8.2f}{parts[1]:8.2f}"
        f"{parts[2]:13.3f}{other_load:9.1f}{len(runs):7}"
    )


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def print_parts(parts: dict[int, Parts]) -> None:
    """Print where the time of one job goes, for each number of jobs."""
    print(f"\n{OWN.title}: one job, ms".ljust(41) + "".join(f"{_jobs(n):>13}" for n in parts))
    for number, name in enumerate(PARTS):
        _print_part(name, [part.job[number] for part in parts.values()])
    _print_part("together", [sum(part.job) for part in parts.values()])
    print("once a workflow, ms")
    _print_part("driver's start to its first sbatch", [part.before for part in parts.values()])
    _print_part("last job noticed to driver's end", [part.after for part in parts.values()])


def _print_part(name: str, seconds: Sequence[float]) -> None:
    print(f"  {name:<38}" + "".join(f"{1000 * value:13.0f}" for value in seconds))


def print_surroundings(runs: Sequence[Run], load: float) -> None:
    """Print the versions, the machine, and the load by other processes."""
    print(
        f"snakemake {version('snakemake')}, submitit {version('submitit')}, {', '.join(PACKAGES)}\n"
        f"{psutil.cpu_count()} CPUs, load {load:.1f} when it began; others kept "
        f"{median(run.elsewhere for run in runs):.1f} CPUs busy during a run (median; "
        f"{min(run.elsewhere for run in runs):.1f} to {max(run.elsewhere for run in runs):.1f})\n"
        "wall s: median; of a, of b: its ratio to theirs; CPU-s: driver with what it started\n"
        "(wait4) and jobs (TotalCPU of sacct, all steps); controller: slurmctld with accounting\n"
        "and database, apart; others: CPUs kept busy by unrelated processes, slurmd included"
    )


def measure_all(site: Site, counts: Sequence[int], rounds: dict[bool, int]) -> dict[str, object]:
    """Measure and print everything; return it."""
    load = os.getloadavg()[0]
    for case in (CASES[1], OWN):  # the first run reads every file from disk
        print_run("warm-up", site.run(case, 1, site.new_folder(case, 1)))
    runs = list(measure(site, counts, rounds))
    observed, parts = [], {}
    for count in counts:
        run, measured_parts = submission_parts.measure(site, OWN, count)
        print_run(f"where the time goes, {_jobs(count)}", run)
        observed.append(run)
        if measured_parts:
            parts[count] = measured_parts
    print_surroundings(runs, load)
    for count in counts:
        print_times(runs, count)
    print_parts(parts)
    for run in (*runs, *observed):
        if run.problem:
            print(f"FAILED: {run.case}, {_jobs(run.count)}: {run.problem}")
    return {
        "packages": [
            *PACKAGES,
            *(f"{name}=={version(name)}" for name in ("snakemake", "submitit")),
        ],
        "load": load,
        "runs": [asdict(run) for run in runs],
        "observed": [asdict(run) for run in observed],
        "parts": {
            count: {**asdict(part), "job": dict(zip(PARTS, part.job, strict=True))}
            for count, part in parts.items()
        },
    }


def succeeded(report: dict[str, Any]) -> bool:
    """Return whether no run has failed."""
    return not any(run["problem"] for name in ("runs", "observed") for run in report[name])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--counts", type=lambda text: [int(count) for count in text.split(",")], default="1,24,100",
        help="numbers of jobs [1,24,100]",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way [3]")
    parser.add_argument(
        "--baseline-repeats", type=int, default=1, help="runs of each way of the slurm plugin [1]"
    )
    parser.add_argument(
        "--folder", type=Path,
        help="keeps the baseline's packages, the cluster and all logs [a temporary one]",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    return parser.parse_args()


def main() -> int:
    """Measure; return the exit code: 0, 1 if a run has failed, 2 if there was none."""
    arguments = parse()
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="submission-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rounds = {False: arguments.repeats, True: arguments.baseline_repeats}
    try:
        with Cluster(folder / "slurm") as cluster:
            site = Site(cluster, folder)
            site.install_baseline()
            report = measure_all(site, arguments.counts, rounds)
    except (ClusterError, MissingBaseline) as error:
        print(f"submission: error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if succeeded(report) and not arguments.folder:
        shutil.rmtree(folder)
    return 0 if succeeded(report) else 1


if __name__ == "__main__":
    sys.exit(main())
