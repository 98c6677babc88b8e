"""Snakemake executor that runs jobs through submitit: on SLURM, in processes here, or in-process.

One Snakemake job is one submitit job all along: through time limits, preemption, requeues, failing
nodes, and restarts of Snakemake itself. docs/further.md has the settings.

Nothing is imported before it is asked for: this package is loaded by every start of Snakemake and
by every job on its node.
"""

import importlib
from typing import Any

_PLACES = {
    "Executor": "executor",
    "ExecutorSettings": "settings",
    "common_settings": "settings",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
