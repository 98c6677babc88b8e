"""Ranks of a training as forks, which the launcher of `smt prove` starts and kills."""

import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from smt.proof import launch
from tests.helpers import forkserver


def start_ranks(project: Path, ranks: int, *arguments: str, log: str = "try", prepare=()):
    """Start `smt ARGUMENTS` on `ranks` ranks in a project's folder, and return the attempt.

    `prepare` is for each fork: see forkserver.py. Rank R writes to logs/LOG-rankR.log.
    """
    with mock.patch.object(launch, "subprocess", _forks(project, prepare)):
        return launch.LocalLauncher().start(arguments, ranks, project / "logs" / log)


def process_of(attempt, rank: int) -> forkserver.Process:
    """Return the process of one rank of an attempt."""
    return attempt._processes[rank]


def ranks_become_forks() -> None:
    """Patch the launcher so that the trainings of a proof are forks."""
    launch.subprocess = _forks(Path.cwd(), ())


AS_FORKS = (__name__, ranks_become_forks.__name__)
"""The `prepare` of a fork of `smt prove`."""


def _forks(folder: Path, prepare: tuple[str, ...]) -> SimpleNamespace:
    """Return a replacement of the module `subprocess` for the launcher."""
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
