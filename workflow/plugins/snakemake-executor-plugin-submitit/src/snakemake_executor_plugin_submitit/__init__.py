"""Snakemake executor that runs jobs through submitit: on SLURM, in local processes, or in-process.

A Snakemake job stays one submitit job through time limits, preemption, requeues, node failures and
restarts of Snakemake. docs/further.md has the settings.

The submodules are imported on first use: Snakemake loads this package at every start, and again
within every job.
"""

import importlib
from typing import Any

_MODULES = {
    "Executor": "executor",
    "ExecutorSettings": "settings",
    "common_settings": "settings",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
