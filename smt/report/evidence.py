"""The numbers that formulas name: as they are published, and as they are here."""

import math
from dataclasses import dataclass

from smt.config.numbers import SIZES, experiment_of
from smt.config.peers import peer_size_name
from smt.config.project import Project
from smt.report.collect import Results
from smt.report.metric_result import summary_of
from smt.report.sizes import PAPER
from smt.report.spread import Spread


@dataclass(frozen=True)
class Quantity:
    """A number that was reproduced or measured here."""

    value: float
    n: int | None = None
    """Seeds that it is the mean of; None for one that has no spread, such as a size."""
    spread: Spread | None = None
    """Of single seeds, where it is known."""

    @property
    def is_exact(self) -> bool:
        """Whether it has no spread."""
        return self.n is None

    @property
    def variance(self) -> float:
        """Variance of the mean; NaN where the spread is not known."""
        if self.n is None:
            return 0.0
        return math.nan if self.spread is None else self.spread.std**2 / self.n


def published(project: Project, name: str) -> float | None:
    """Return a number as its source prints it; None where it is not at hand.

    One that was derived from a claim is not at hand: it would prove that claim by itself.
    """
    owner, _, key = name.rpartition(".")
    if experiment_of(project, name) is not None:
        value = project.published_value(owner, key)
    elif owner in project.models or owner in project.systems:
        value = project.reported.sizes_of(owner).get(key)
    else:
        table, _, peer_name = owner.partition(".")
        peer = project.peer_tables[table].peers[peer_name]
        return float(getattr(peer, key)) if key in SIZES else peer.results[key]
    return None if value is None else value.value


def here(results: Results, name: str) -> Quantity | None:
    """Return a number as it was reproduced or measured here; None where it was not.

    Another's result is not trained here: the published one stands in its place. So does the size of
    a model that timm does not have.
    """
    project, (owner, _, key) = results.project, name.rpartition(".")
    experiment = experiment_of(project, name)
    if experiment is not None:
        summary = summary_of(results.of(experiment), key)
        if summary is None:
            return None
        return Quantity(summary.mean, summary.n, results.spread(experiment, key))
    if owner in project.models or owner in project.systems:
        return _size(results, owner, key)
    table, _, peer_name = owner.partition(".")
    peer = project.peer_tables[table].peers[peer_name]
    if key in SIZES and peer.timm is not None:
        return _size(results, peer_size_name(peer.timm), key)
    return Quantity(float(getattr(peer, key)) if key in SIZES else peer.results[key])


def measured_sizes(results: Results, name: str) -> dict[str, float]:
    """Return the measured sizes of a model or system, of the paper's scale; empty without any.

    params_m: parameters in millions; gmacs: 1e9 MACs counted as the published ones were, of a
    classifier at 224; gmacs_attention: the same with the products of attention.
    """
    sizes = results.sizes[PAPER]
    params, image = sizes.params(name), sizes.size_of_image(name)
    if params is None or image is None:
        return {}
    at = image if "x" in image else "224"
    macs = {"gmacs": "reported", "gmacs_attention": "attention"}
    counts = {key: sizes.macs(name, at, convention) for key, convention in macs.items()}
    return {"params_m": params / 1e6} | {
        key: count / 1e9 for key, count in counts.items() if count is not None
    }


def peer_sizes(results: Results, timm_name: str | None) -> dict[str, float]:
    """Return the measured sizes of a model of timm, as `measured_sizes` does; empty without one."""
    return {} if timm_name is None else measured_sizes(results, peer_size_name(timm_name))


def _size(results: Results, name: str, key: str) -> Quantity | None:
    value = measured_sizes(results, name).get(key)
    return None if value is None else Quantity(value)
