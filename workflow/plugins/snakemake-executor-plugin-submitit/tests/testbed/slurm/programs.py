"""The programs of a cluster, and their Debian packages."""

import os
import shutil

PACKAGES: dict[str, tuple[str, ...]] = {
    "munge": ("munged",),
    "slurm-client": ("sbatch", "scontrol", "sinfo"),
    "slurmctld": ("slurmctld",),
    "slurmd": ("slurmd",),
}
"""Debian package -> its programs that a cluster needs."""

ACCOUNTING_PACKAGES: dict[str, tuple[str, ...]] = {
    "slurmdbd": ("slurmdbd",),
    "mariadb-server-core": ("mariadbd", "mariadb-install-db"),
    "mariadb-client-core": ("my_print_defaults",),
}
"""The same for accounting. The -core package has the server without a service that starts it."""

SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
"""Also the folders of daemons, which are not on an ordinary user's PATH."""


def missing_programs(accounting: bool = True) -> list[str]:
    """Return the programs that are not installed."""
    required = _required(accounting)
    return [name for names in required.values() for name in names if _find(name) is None]


def missing_packages(accounting: bool = True) -> list[str]:
    """Return the Debian packages of the missing programs."""
    required = _required(accounting)
    return [package for package, names in required.items() if not all(map(_find, names))]


def _required(accounting: bool) -> dict[str, tuple[str, ...]]:
    return {**PACKAGES, **(ACCOUNTING_PACKAGES if accounting else {})}


def _find(program: str) -> str | None:
    return shutil.which(program, path=SEARCH_PATH)
