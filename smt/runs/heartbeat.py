"""The heartbeat of a running training: its step and the time, which rank 0 overwrites each step.

It serves `smt status`, and who waits for the run's lock. The journal is the record.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from smt.runs import shared_folder
from smt.runs.atomic import detach

PULSE = "pulse"


@dataclass(frozen=True)
class Beat:
    """Step and time of the last write."""

    step: int
    """Global steps done."""
    time: float
    """Unix seconds."""


class Heartbeat:
    """Writes the heartbeat of a work folder.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        detach(folder / PULSE)
        self._file = os.open(folder / PULSE, os.O_WRONLY | os.O_CREAT, 0o644)

    def write(self, step: int) -> None:
        """Write that `step` global steps are done. Takes 2 us: there is no fsync."""
        os.pwrite(self._file, b"%012d %017.6f\n" % (step, time.time()), 0)

    def close(self) -> None:
        os.close(self._file)


def read(folder: Path) -> Beat | None:
    """Return the last beat of the training in a work folder, or None before the first."""
    try:
        step, at = shared_folder.read_bytes(folder / PULSE).split()
        return Beat(int(step), float(at))
    except (FileNotFoundError, ValueError):
        return None
