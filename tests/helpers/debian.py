"""Debian's programs that tests start; `python -m tests.helpers.debian` prints what is missing."""

import os
import shutil
from pathlib import Path

import pytest

from tests.helpers.slurm import missing_packages, missing_programs

PROGRAMS = {
    "chromium": "chromium",
    "faketime": "faketime",
    "initdb": "postgresql",
    "pdflatex": "texlive-latex-recommended",
}
"""Program -> the package that brings it, beside those of SLURM (tests/helpers/slurm)."""

POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
"""Where Debian has PostgreSQL's servers: no PATH leads there."""


def find(program):
    """Return the path of a program, or None."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *map(str, POSTGRESQL)))
    return shutil.which(program, path=path)


def require(program):
    """Return the path of a program; without it a test is reported as not run, or fails in CI."""
    found = find(program)
    if found is None:
        _report_missing(f"{program} is not installed (apt-get install {PROGRAMS[program]})", "CI")
    return found


def require_slurm():
    """Do the same for the programs of SLURM."""
    if missing := missing_programs():
        _report_missing(
            f"SLURM is not installed: {', '.join(missing)} missing "
            f"(apt-get install {' '.join(missing_packages())})",
            "CI", "SMT_REQUIRE_SLURM",
        )  # fmt: skip


def _report_missing(reason, *variables):
    if any(map(os.environ.get, variables)):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def main():
    others = [package for program, package in PROGRAMS.items() if find(program) is None]
    print(" ".join((*missing_packages(), *others)))


if __name__ == "__main__":
    main()
