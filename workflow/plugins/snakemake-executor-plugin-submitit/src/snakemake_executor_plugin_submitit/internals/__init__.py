"""What this plugin uses of Snakemake and submitit beyond what their interfaces promise.

Each such use is in this package, with its reason. At every start each module's `check` asks whether
all of it is there: a version that lacks something is named, with the thing, before any job is
submitted.
"""

from importlib import metadata
from typing import Any

from snakemake_interface_common.exceptions import ApiError

NAME = "snakemake-executor-plugin-submitit"

TESTED = "snakemake 9.17 to 9.27 and submitit 1.5.4"


def require(package: str, owner: str, found: Any, names: tuple[str, ...]) -> None:
    """Ask whether an object or class has attributes of these names.

    Raises:
        ApiError: naming the first that is not there, and the version of the package.
    """
    # dir() computes nothing, as asking for a property would.
    lacking = sorted(set(names) - set(dir(found)))
    if lacking:
        raise ApiError(
            f"submitit: {package} {metadata.version(package)} has no {owner}.{lacking[0]}, which "
            f"{NAME} {metadata.version(NAME)} needs; it is tested with {TESTED}: install one of "
            "these, or a newer version of the plugin"
        )
