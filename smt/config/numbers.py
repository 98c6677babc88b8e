"""Names of the numbers that formulas are about."""

from collections.abc import Iterator

from smt.config.metrics import METRICS
from smt.config.project import Project

SIZES = ("params_m", "gmacs")
"""Sizes of a model, in millions and in 1e9 multiply-accumulates."""


def valid_names(project: Project) -> Iterator[str]:
    """Yield every number that a formula may name."""
    for experiment in project.experiments:
        yield from (f"{experiment}.{metric}" for metric in project.metrics_of(experiment))
    for model in (*project.models, *project.systems):
        yield from (f"{model}.{size}" for size in SIZES)
    for table, content in project.peer_tables.items():
        for name, peer in content.peers.items():
            yield from (f"{table}.{name}.{key}" for key in (*SIZES, *peer.results))


def experiment_of(project: Project, name: str) -> str | None:
    """Return the experiment that a number is of, or None for a size or another's number."""
    experiment, _, metric = name.rpartition(".")
    return experiment if experiment in project.experiments and metric in METRICS else None
