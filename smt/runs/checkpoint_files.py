"""Names of checkpoints on disk, which hold step and epochs: read without opening the files."""

import re
from dataclasses import dataclass
from pathlib import Path

from smt.runs import shared_folder

FOLDER = "checkpoints"
"""Where they lie in a run's work folder."""

_NAME = re.compile(r"^step-(\d{10})-epoch-(\d{5})-([0-9a-f]{64})\.safetensors$")


@dataclass(frozen=True, order=True)
class CheckpointName:
    """The file name of a checkpoint. Names sort by position: step, then closed epochs."""

    step: int
    """Global steps done."""
    epochs: int
    """Epochs closed: that of `step` only after its evaluation."""
    sha256: str

    @classmethod
    def parse(cls, path: Path) -> "CheckpointName | None":
        """Return the parsed name of `path`, or None if it is no checkpoint."""
        match = _NAME.match(path.name)
        return cls(int(match[1]), int(match[2]), match[3]) if match else None

    @classmethod
    def of(cls, path: Path) -> "CheckpointName":
        """Return the parsed name of the checkpoint `path`."""
        name = cls.parse(path)
        assert name is not None, path
        return name

    def __str__(self) -> str:
        return f"step-{self.step:010d}-epoch-{self.epochs:05d}-{self.sha256}.safetensors"


def checkpoints(work_dir: Path) -> list[Path]:
    """Return the checkpoints of a run's work folder, newest first."""
    return checkpoints_in(work_dir / FOLDER)


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first."""
    # A resumed training that did not see them would begin anew.
    if not shared_folder.exists(folder):
        return []
    paths = (path for path in folder.iterdir() if CheckpointName.parse(path))
    return sorted(paths, key=CheckpointName.of, reverse=True)
