"""`python -m smt.cluster.doctor.node FOLDER`: run by a job, this tells what a node is like."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from smt import __version__
from smt.runs import source
from smt.runs.atomic import write_json
from smt.runs.paths import PACKAGE

ANSWER = "answer.json"

CHECK = "smt.engine.gpu_check"
"""What looks at GPUs: it imports torch, which may fail, and is run in a process of its own."""


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
            smt=f"{__version__} in {PACKAGE}",
            code=source.digests(),
        )


class Answer(NamedTuple):
    """What a job found on its node."""

    node: str
    environment: Environment
    gpus: dict[str, Any] | None
    """What `smt.engine.gpu_check` says of GPUs; None if PyTorch does not even load."""


def read(folder: Path) -> Answer | None:
    """Return the answer that a job left in `folder`, or None where there is none yet."""
    list(folder.iterdir())  # a network disk looks again
    try:
        held = json.loads((folder / ANSWER).read_bytes())
    except FileNotFoundError:
        return None
    return Answer(held["node"], Environment(**held["environment"]), held["gpus"])


def answer() -> Answer:
    """Return what there is to say of this node."""
    node = os.environ.get("SLURMD_NODENAME", platform.node())
    return Answer(node, Environment.here(), _gpus())


def _gpus() -> dict[str, Any] | None:
    done = subprocess.run([sys.executable, "-m", CHECK], capture_output=True, text=True)
    if done.returncode:
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    found = answer()
    write_json(
        Path(sys.argv[1]) / ANSWER,
        {**found._asdict(), "environment": found.environment._asdict()},
    )
