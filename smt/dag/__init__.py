"""The DAG as Snakemake sees it: inputs, outputs and params of its jobs, from `params/`."""

from smt.dag.plan import (
    MAKE_EVERY_TABLE,
    TRAINING_RULES,
    Plan,
    forbid_names,
    load,
    missing_data,
    paths,
    pattern,
    plans,
    scales,
    source_digest,
)
from smt.dag.report import EVERYTHING

__all__ = (
    "EVERYTHING",
    "MAKE_EVERY_TABLE",
    "TRAINING_RULES",
    "Plan",
    "forbid_names",
    "load",
    "missing_data",
    "paths",
    "pattern",
    "plans",
    "scales",
    "source_digest",
)
