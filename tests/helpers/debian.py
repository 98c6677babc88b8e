"""Debian's programs that tests start; `python -m tests.helpers.debian` prints what is missing."""

import os
import shutil
from pathlib import Path

from testbed.fixtures import report_missing
from testbed.slurm import missing_packages

PROGRAMS = {
    "chromium": "chromium",
    "faketime": "faketime",
    "initdb": "postgresql",
    "pdflatex": "texlive-latex-recommended",
    "Rscript": "r-base-core",
    "rsync": "rsync",
}
"""Program -> the package that brings it, beside those of SLURM (testbed.slurm)."""

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
        report_missing(f"{program} is not installed (apt-get install {PROGRAMS[program]})")
    return found


def main():
    others = [package for program, package in PROGRAMS.items() if find(program) is None]
    print(" ".join((*missing_packages(), *others)))


if __name__ == "__main__":
    main()
