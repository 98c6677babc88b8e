"""Debian's programs that tests start; `python -m tests.helpers.debian` prints missing packages."""

import os
import shutil
from pathlib import Path

from testbed import uml
from testbed.fixtures import report_missing
from testbed.slurm import missing_packages

PROGRAMS = {
    "chromium": "chromium",
    "debootstrap": "debootstrap",
    "faketime": "faketime",
    "g++": "g++",
    "initdb": "postgresql",
    "iptables": "iptables",
    "pdflatex": "texlive-latex-recommended",
    "Rscript": "r-base-core",
    "rsync": "rsync",
    "sftp-server": "openssh-sftp-server",
    "sshfs": "sshfs",
    **uml.PROGRAMS,
}
"""Program -> Debian package, beside those of SLURM (testbed.slurm)."""

POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
"""Folders of PostgreSQL's servers in Debian, which are not in PATH."""

OPENSSH = Path("/usr/lib/openssh")
"""Folder of sftp-server, which is not in PATH either."""


def find(program):
    """Return the path of a program, or None."""
    folders = (
        os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", *map(str, POSTGRESQL),
        str(OPENSSH),
    )  # fmt: skip
    path = os.pathsep.join(folders)
    return shutil.which(program, path=path)


def require(program):
    """Return the path of a program; without it the test is skipped, or fails in CI."""
    path = find(program)
    if path is None:
        report_missing(f"{program} is not installed (apt-get install {PROGRAMS[program]})")
    return path


def main():
    missing = [package for program, package in PROGRAMS.items() if find(program) is None]
    print(" ".join((*missing_packages(), *missing)))


if __name__ == "__main__":
    main()
