"""Warnings before memory or disk run out, each said once."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

log = logging.getLogger(__name__)

_CHECKPOINTS = 4
"""The last two, the best, and one being written."""

_MEMORY = 0.92
"""Part of a memory limit that a healthy training stays below."""


class Headroom:
    """Looks at what is left of disk and memory, as often as it is asked."""

    def __init__(self, folder: Path | None, checkpoint_bytes: int, device: torch.device) -> None:
        self._folder, self._bytes, self._device = folder, checkpoint_bytes, device
        self._said: set[str] = set()

    def check(self) -> None:
        """Warn of each thing that is getting short, the first time that it is."""
        for kind, warning in self._short():
            if kind not in self._said:
                self._said.add(kind)
                log.warning("%s", warning)

    def _short(self) -> Iterator[tuple[str, str]]:
        if self._folder is not None:
            free, needed = shutil.disk_usage(self._folder).free, _CHECKPOINTS * self._bytes
            if free < needed:
                yield (
                    "disk",
                    f"{self._folder}: {_mb(free)} free, less than {_CHECKPOINTS} checkpoints take "
                    f"({_mb(needed)}); make room before the disk is full",
                )
        used, limit = memory()
        if used > _MEMORY * limit:
            yield (
                "memory",
                f"{_mb(used)} of {_mb(limit)} of memory are in use; ask for more memory, or lower "
                "`workers` of the scale in params/scales.yaml, before the system ends a process",
            )
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            if total - free > _MEMORY * total:
                yield (
                    "gpu",
                    f"{_mb(total - free)} of {_mb(total)} of GPU memory are in use; lower the "
                    "recipe's device_batch if it runs out",
                )


def memory(control: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> (
    tuple[int, int]
):  # fmt: skip
    """Return bytes in use and the limit: of the control group (a job's, on a cluster), if it has
    one below the machine's memory; else of the machine.
    """  # noqa: D205
    machine = psutil.virtual_memory()
    for folder, used, limit in _groups(control, own):
        try:
            bound = int((folder / limit).read_text())
            if bound < machine.total:
                return int((folder / used).read_text()) - _cache(folder), bound
        except (OSError, ValueError):  # no such group here, or its limit is "max"
            continue
    return machine.total - machine.available, machine.total


def _groups(control: Path, own: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield this process's groups and the ones above, with the names of their two files."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = ("memory.current", "memory.max")
        top = control
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            names, top = ("memory.usage_in_bytes", "memory.limit_in_bytes"), control / "memory"
        folder = top / path.strip("/")
        for group in (folder, *folder.parents):
            if group == top.parent:
                break
            yield group, *names


def _cache(folder: Path) -> int:
    """Return the bytes of a group's file cache that the system takes back when it needs them."""
    for line in (folder / "memory.stat").read_text().splitlines():
        name, value = line.split()
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _mb(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"
