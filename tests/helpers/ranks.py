"""The ranks of a training as forks, started and killed by what a proof starts and kills them by."""

import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from smt.proof import launch
from tests.helpers import forkserver


def start_ranks(project: Path, ranks: int, *arguments: str, log: str = "try", prepare=()):
    """Start `smt ARGUMENTS` on some ranks in a project's folder, and return the attempt.

    `prepare` is what prepares each fork: see forkserver.py. Rank r writes to logs/LOG-rank-r.log.
    """
    with mock.patch.object(launch, "subprocess", _forks(project, prepare)):
        return launch.LocalLauncher().start(arguments, ranks, project / "logs" / log)


def process_of(attempt, rank: int) -> forkserver.Process:
    """Return the process of one rank of an attempt."""
    return attempt._processes[rank]


def ranks_become_forks() -> None:
    """Let every training that this process starts for a proof be a fork."""
    launch.subprocess = _forks(Path.cwd(), ())


AS_FORKS = (__name__, ranks_become_forks.__name__)
"""What prepares a fork of `smt prove`."""


def _forks(folder: Path, prepare: tuple[str, ...]) -> SimpleNamespace:
    """Return what stands for the module `subprocess` of a launcher."""
    return SimpleNamespace(
        Popen=partial(_popen, folder=folder, prepare=prepare),
        DEVNULL=subprocess.DEVNULL,
        STDOUT=subprocess.STDOUT,
    )


def _popen(command, *, stdin, stdout, stderr, env, folder, prepare):
    assert (stdin, stderr) == (subprocess.DEVNULL, subprocess.STDOUT)
    _, option, module, *arguments = command
    assert option == "-m"
    return forkserver.start(
        module, *arguments, cwd=folder, env=env, stdout=stdout, stderr=stdout, prepare=prepare
    )
