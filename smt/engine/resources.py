"""Warnings before memory or disk run out, each once."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

log = logging.getLogger(__name__)

_CHECKPOINTS_ON_DISK = 4
"""The last two, the best, and one being written."""

_MAX_USED = 0.92
"""Part of a memory limit that a healthy training stays below."""


class ResourceMonitor:
    """Checks what is left of disk and memory."""

    def __init__(self, folder: Path | None, checkpoint_bytes: int, device: torch.device) -> None:
        self._folder, self._bytes, self._device = folder, checkpoint_bytes, device
        self._warned: set[str] = set()

    def check(self, milestones: int = 0) -> None:
        """Warn of each shortage the first time; so many `milestones` are still to be kept."""
        for kind, warning in self._shortages(_CHECKPOINTS_ON_DISK + milestones):
            if kind not in self._warned:
                self._warned.add(kind)
                log.warning("%s", warning)

    def _shortages(self, checkpoints: int) -> Iterator[tuple[str, str]]:
        if self._folder is not None:
            free, needed = shutil.disk_usage(self._folder).free, checkpoints * self._bytes
            if free < needed:
                yield (
                    "disk",
                    f"{self._folder}: {_format_mb(free)} free, less than {checkpoints} "
                    f"checkpoints take ({_format_mb(needed)}); make room before the disk is full",
                )
        used, limit = memory()
        if used > _MAX_USED * limit:
            yield (
                "memory",
                f"{_format_mb(used)} of {_format_mb(limit)} of memory are in use; ask for more "
                "memory, or lower `workers` of the scale in params/scales.yaml, before the system "
                "ends a process",
            )
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            if total - free > _MAX_USED * total:
                yield (
                    "gpu",
                    f"{_format_mb(total - free)} of {_format_mb(total)} of GPU memory are in use; "
                    "lower the recipe's device_batch if it runs out",
                )


def memory(cgroup_root: Path = Path("/sys/fs/cgroup"), process_file: Path =
Path("/proc/self/cgroup")) -> (
    tuple[int, int]
):  # fmt: skip
    """Return bytes in use and the limit: of the control group (a job's, on a cluster), if it has
    one below the machine's memory; else of the machine.
    """  # noqa: D205
    machine = psutil.virtual_memory()
    for folder, used, limit in _cgroups(cgroup_root, process_file):
        try:
            limit_bytes = int((folder / limit).read_text())
            if limit_bytes < machine.total:
                return int((folder / used).read_text()) - _cache(folder), limit_bytes
        except (OSError, ValueError):  # no such group here, or its limit is "max"
            continue
    return machine.total - machine.available, machine.total


def _cgroups(cgroup_root: Path, process_file: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield this process's groups and the ones above, with the names of their two files."""
    try:
        lines = process_file.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        file_names = ("memory.current", "memory.max")
        root = cgroup_root
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            file_names = ("memory.usage_in_bytes", "memory.limit_in_bytes")
            root = cgroup_root / "memory"
        folder = root / path.strip("/")
        for group in (folder, *folder.parents):
            if group == root.parent:
                break
            yield group, *file_names


def _cache(folder: Path) -> int:
    """Return the bytes of a group's file cache that the system takes back when it needs them."""
    for line in (folder / "memory.stat").read_text().splitlines():
        name, value = line.split()
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _format_mb(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"
