"""Control groups (version 1) of hosts: SLURM limits the memory of jobs by them."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CONTROLLERS = ("memory", "freezer", "cpuacct", "devices", "pids")
"""Those that SLURM's cgroup plugins use, but for cpuset: nodes have more CPUs than the machine."""

_REMOVAL_TIMEOUT = 10.0
"""Seconds until the last process of a group has left it."""


@dataclass(frozen=True)
class Cgroups:
    """One folder for each controller, which hold a folder for each host."""

    folders: Mapping[str, Path]
    """Controller -> folder."""

    @classmethod
    def named(cls, name: str) -> "Cgroups | None":
        """Return the groups called `name` below those of this process.

        None if a controller has no writable hierarchy of version 1, as on a machine that has only
        version 2.
        """
        mounts = _mounts()
        own = _own_groups()
        folders = {
            controller: mounts[controller] / own[controller].lstrip("/")
            for controller in CONTROLLERS
            if controller in mounts and controller in own
        }
        usable = len(folders) == len(CONTROLLERS) and all(
            folder.is_dir() and os.access(folder, os.W_OK) for folder in folders.values()
        )
        return cls({key: folder / name for key, folder in folders.items()}) if usable else None

    def make(self, host: str) -> dict[str, Path]:
        """Make the groups of a host; return the folder for each controller."""
        groups = {controller: folder / host for controller, folder in self.folders.items()}
        for group in groups.values():
            group.mkdir(parents=True, exist_ok=True)
        return groups

    def remove(self) -> None:
        """Remove all of them; wait for processes that are just ending."""
        deadline = time.monotonic() + _REMOVAL_TIMEOUT
        for folder in self.folders.values():
            while not _remove(folder) and time.monotonic() < deadline:
                time.sleep(0.02)


def _remove(folder: Path) -> bool:
    """Remove a group with those below; return whether it is gone."""
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            Path(path).rmdir()
    return not folder.exists()


def _mounts() -> dict[str, Path]:
    """Return where each controller of version 1 is mounted."""
    mounts = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, folder, kind, options, *_ = line.split()
        if kind == "cgroup":
            mounts.update(dict.fromkeys(options.split(","), Path(folder)))
    return mounts


def _own_groups() -> dict[str, str]:
    """Return the group of this process for each controller."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), group))
    return groups
