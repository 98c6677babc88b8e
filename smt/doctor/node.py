"""`python -m smt.doctor.node FOLDER`: run by a job, this tells what a node is like."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from smt import __version__
from smt.files import write_json
from smt.tracking import source

ANSWER = "answer.json"

_GPUS = "import torch; print(torch.cuda.device_count())"


class Environment(NamedTuple):
    """What has to be the same here and on a node."""

    python: str
    """Version and path."""
    smt: str
    """Version and path."""
    code: dict[str, str]
    """A digest of each module that trains, and versions of libraries."""

    @classmethod
    def here(cls) -> "Environment":
        """Return that of this process."""
        return cls(
            python=f"{platform.python_version()} in {sys.prefix}",
            smt=f"{__version__} in {source.PACKAGE}",
            code=source.digests(),
        )


class Answer(NamedTuple):
    """What a job found on its node."""

    node: str
    environment: Environment
    gpus: int | None
    """GPUs that PyTorch sees; None if it does not even load."""


def read(folder: Path) -> Answer | None:
    """Return the answer that a job left in `folder`, or None where there is none yet."""
    os.listdir(folder)  # a network disk looks again
    try:
        held = json.loads((folder / ANSWER).read_bytes())
    except FileNotFoundError:
        return None
    return Answer(held["node"], Environment(**held["environment"]), held["gpus"])


def answer() -> Answer:
    """Return what there is to say of this node."""
    node = os.environ.get("SLURMD_NODENAME", platform.node())
    return Answer(node, Environment.here(), _gpus())


def _gpus() -> int | None:
    """Return the GPUs that PyTorch sees; it is loaded elsewhere, for loading it may fail."""
    done = subprocess.run([sys.executable, "-c", _GPUS], capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else None


if __name__ == "__main__":
    found = answer()
    write_json(
        Path(sys.argv[1]) / ANSWER,
        {**found._asdict(), "environment": found.environment._asdict()},
    )
