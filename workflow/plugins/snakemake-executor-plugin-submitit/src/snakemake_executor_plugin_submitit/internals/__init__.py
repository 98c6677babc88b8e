"""All use of Snakemake and submitit beyond their public interfaces, with the reasons.

At every start, each module's `check` looks for all internals that it uses: if the installed version
lacks one, an error names it before any job is submitted.
"""

from importlib import metadata
from typing import Any

from snakemake_interface_common.exceptions import ApiError

NAME = "snakemake-executor-plugin-submitit"

TESTED = "snakemake 9.17 to 9.27 and submitit 1.5.4"


def require(package: str, owner: str, target: Any, names: tuple[str, ...]) -> None:
    """Check that an object or class has these attributes.

    Raises:
        ApiError: with the first missing one, and the version of the package.
    """
    # dir(), since hasattr() would compute properties.
    missing = sorted(set(names) - set(dir(target)))
    if missing:
        raise ApiError(
            f"submitit: {package} {metadata.version(package)} has no {owner}.{missing[0]}, which "
            f"{NAME} {metadata.version(NAME)} needs; it is tested with {TESTED}: install one of "
            "these, or a newer version of the plugin"
        )
