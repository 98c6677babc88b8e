"""The programs that a cluster takes, and the Debian packages that bring them."""

import os
import shutil

PACKAGES: dict[str, tuple[str, ...]] = {
    "munge": ("munged",),
    "slurm-client": ("sbatch", "scontrol", "sinfo"),
    "slurmctld": ("slurmctld",),
    "slurmd": ("slurmd",),
}
"""Debian's package -> what a cluster needs of it."""

ACCOUNTING_PACKAGES: dict[str, tuple[str, ...]] = {
    "slurmdbd": ("slurmdbd",),
    "mariadb-server-core": ("mariadbd", "mariadb-install-db"),
    "mariadb-client-core": ("my_print_defaults",),
}
"""The same for accounting. The -core package has the server without a service that starts it."""

SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
"""Daemons lie where an ordinary user's PATH does not lead."""


def missing_programs(accounting: bool = True) -> list[str]:
    """Return the programs that are not installed."""
    wanted = _wanted(accounting)
    return [name for names in wanted.values() for name in names if _find(name) is None]


def missing_packages(accounting: bool = True) -> list[str]:
    """Return Debian's packages that bring what is not installed."""
    wanted = _wanted(accounting)
    return [package for package, names in wanted.items() if not all(map(_find, names))]


def _wanted(accounting: bool) -> dict[str, tuple[str, ...]]:
    return {**PACKAGES, **(ACCOUNTING_PACKAGES if accounting else {})}


def _find(program: str) -> str | None:
    return shutil.which(program, path=SEARCH_PATH)
