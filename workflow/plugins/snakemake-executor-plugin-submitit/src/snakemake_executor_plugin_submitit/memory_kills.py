"""Processes of this job that the kernel killed for exceeding the job's memory, on this node.

SLURM's task/cgroup limits memory by control groups: one for the job, below it one for each step. A
killed command looks like any that got SIGKILL, but another attempt would come to the same end.
"""

import os
import re
from pathlib import Path

_JOB_GROUP = re.compile(r".*?/job_\d+(?=/|$)")
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def count() -> int:
    """Return how many were killed in the groups that there are now; 0 without control groups.

    In version 1 a step's count goes with the step, in version 2 the job's has those of all steps.
    """
    job = _job_folder()
    if job is None:
        return 0
    if (job / "memory.events").exists():
        return _kills(job / "memory.events")
    return sum(_kills(Path(folder, "memory.oom_control")) for folder, _, _ in os.walk(job))


def _job_folder() -> Path | None:
    """Return the folder of this job's control group for memory, if it has one."""
    mounts = [line.split() for line in _read(Path("/proc/self/mounts")).splitlines()]
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, group = line.split(":", 2)
        job = _JOB_GROUP.match(group)
        if job is None or not (controllers == "" or "memory" in controllers.split(",")):
            continue
        for _, folder, kind, options, *_ in mounts:
            is_hierarchy = kind == "cgroup" and "memory" in options.split(",")
            if kind == "cgroup2" if controllers == "" else is_hierarchy:
                path = Path(folder + job[0])
                if path.is_dir():
                    return path
    return None


def _kills(file: Path) -> int:
    match = _COUNT.search(_read(file))
    return int(match[1]) if match else 0


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:  # its step has just ended
        return ""
