"""DVC and Snakemake, called as a user types them. Nothing here runs inside a job."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from smt.errors import TrainingError, UserError
from smt.layout import Layout
from smt.versioning.secrets import require_none

_ENVIRONMENT = {"DVC_NO_ANALYTICS": "1"}


def require_repository(layout: Layout) -> None:
    """Raise a UserError unless DVC's repository is here, the results lie in it, and no secret."""
    here = Path.cwd().resolve()
    if not (here / ".dvc" / "config").exists():
        raise UserError(
            f"{here} is no DVC repository (no .dvc/config); run this in the root of a clone"
        )
    require_none(here / ".dvc" / "config")
    if layout.results.resolve() != here / "results":
        raise UserError(
            f"SMT_RESULTS={layout.results}: DVC records {here / 'results'}; leave --results and "
            "SMT_RESULTS away, or make ./results a link to that folder's disk before the first run"
        )


def dvc(*arguments: str) -> None:
    """Run DVC.

    Raises:
        UserError: it failed; it has said why. What it had done by then it need not do again.
    """
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, env={**os.environ, **_ENVIRONMENT})
    if done.returncode:
        raise UserError(
            f"dvc {arguments[0]} failed, see above; nothing is lost: run the same command again"
        )


def snakemake(arguments: Sequence[str]) -> None:
    """Run Snakemake.

    Raises:
        TrainingError: a job has failed; Snakemake has said which.
    """
    done = subprocess.run([sys.executable, "-m", "snakemake", *arguments])
    if done.returncode:
        raise TrainingError(f"snakemake {' '.join(arguments)} failed, see above")


def smt(*arguments: str) -> None:
    """Run a command of this project, in silence.

    Raises:
        UserError: it failed; it has said why.
    """
    command = [sys.executable, "-m", "smt", *arguments]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"smt {' '.join(arguments)} failed, see above")
