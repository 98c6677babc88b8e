"""What `params/peers.yaml` holds: published models beside SMT, in tables of their own."""

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field

from smt.config.models import TimmName
from smt.config.published import MetricName
from smt.config.types import Name, PositiveFloat, Strict


class Peer(Strict):
    """A published model, with its numbers as one source prints them."""

    title: str
    params_m: PositiveFloat
    """Parameters in millions."""
    gmacs: PositiveFloat
    """1e9 multiply-accumulates for one image of the table's size, as published."""
    results: dict[MetricName, float]
    """In percent."""
    source: Name
    """One of the sources of reported.yaml."""
    timm: TimmName | None = None
    """The model in timm, whose size is measured by `smt profile`."""
    experiment: Name | None = None
    """Experiment that trains it here, by SMT's recipe."""


class PeerTable(Strict):
    """Published models of one benchmark, and the experiments that stand beside them."""

    title: str
    caption: str
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1)]
    experiments: Annotated[tuple[Name, ...], Field(min_length=1)]
    peers: Annotated[dict[Name, Peer], Field(min_length=1)]

    @property
    def trained(self) -> tuple[str, ...]:
        """All experiments whose results stand in the table, SMT's first."""
        of_peers = (peer.experiment for peer in self.peers.values())
        return (*self.experiments, *(name for name in of_peers if name is not None))


def timm_peers(tables: Mapping[str, PeerTable]) -> Iterator[tuple[str, str, str]]:
    """Yield table, key and name in timm of each peer that timm has."""
    for table, content in tables.items():
        for key, peer in content.peers.items():
            if peer.timm is not None:
                yield table, key, peer.timm


def timm_names(tables: Mapping[str, PeerTable]) -> tuple[str, ...]:
    """Return the models of timm that stand in tables, each once."""
    return tuple(dict.fromkeys(name for _, _, name in timm_peers(tables)))


def peer_size_name(timm_name: str) -> str:
    """Return what stands for a model of timm among measured sizes."""
    return f"timm.{timm_name}"
