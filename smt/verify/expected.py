"""What MLflow has to say of every run, from the runs' files alone: enough to make every table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from smt.config.experiments import Run
from smt.config.project import Project
from smt.report.collect import Results, assemble
from smt.runs import record
from smt.runs.paths import Layout
from smt.runs.record import RunMetrics
from smt.tracking.client import Point, RemoteRun, Server
from smt.tracking.view import RunView, milliseconds
from smt.verify.derive import Derived

FINAL = "final/"


class Address(Server):
    """Where MLflow's pages are, without a connection: links in tables need no more."""

    def __init__(self, uri: str, family: str) -> None:
        self.uri, self.family = uri, family


@dataclass(frozen=True)
class Receipt:
    """Which run is which MLflow run, as the last sync left it."""

    address: Address
    runs: Mapping[str, Mapping[str, Any]]
    """By fingerprint."""

    @classmethod
    def read(cls, layout: Layout) -> "Receipt | None":
        """Return the receipt, or None where nothing was ever sent.

        Raises:
            DamagedRecord: it is not what a sync writes.
        """
        receipt = record.read_receipt(layout)
        if receipt is None:
            return None
        keys = ("run_id", "experiment_id", "status")
        runs = {run.fingerprint: {key: getattr(run, key) for key in keys} for run in receipt.runs}
        return cls(Address(receipt.tracking_uri, receipt.family), runs)

    @classmethod
    def of(cls, server: Server, remote: Mapping[str, RemoteRun]) -> "Receipt":
        """Return what a sync would have left: where there is no receipt, MLflow's word counts."""
        keys = ("run_id", "experiment_id", "status")
        runs = {name: {key: getattr(run, key) for key in keys} for name, run in remote.items()}
        return cls(Address(server.uri, server.family), runs)


def latest(points: Iterable[Point]) -> dict[str, float]:
    """Return the last value of each metric, as MLflow takes it: by step, then time, then value."""
    last: dict[str, Point] = {}
    for point in points:
        known = last.get(point.key)
        if known is None or _order(point) >= _order(known):
            last[point.key] = point
    return {key: point.value for key, point in last.items()}


def _order(point: Point) -> tuple[int, int, float]:
    return point.step, point.milliseconds, point.value


def points(view: RunView) -> list[Point]:
    """Return every point of a run that is done."""
    return [*view.points, *view.final_points, *view.evaluation_points]


def remote(view: RunView, known: Mapping[str, Any], derived: Derived | None) -> RemoteRun:
    """Return what MLflow has of a run, its final numbers from the journal."""
    metrics = latest(points(view))
    if derived is not None and view.final is not None:
        metrics = {
            **{key: value for key, value in metrics.items() if not _is_derived(key, view.final)},
            **{f"{FINAL}{key}": value for key, value in derived.metrics.items()},
            f"{FINAL}epochs": derived.epochs,
            f"{FINAL}steps": derived.steps,
        }
    return RemoteRun(
        run_id=known["run_id"],
        experiment_id=known["experiment_id"],
        status=known["status"],
        start_milliseconds=milliseconds(view.created),
        params=view.params(),
        tags=view.tags(),
        metrics=metrics,
    )


def _is_derived(key: str, final: RunMetrics) -> bool:
    return key.startswith(FINAL) and key.removeprefix(FINAL) in final.metrics


def results(
    project: Project,
    layout: Layout,
    views: Iterable[RunView],
    derived: Mapping[Run, Derived],
    receipt: Receipt | None,
    elsewhere: Mapping[str, RemoteRun],
) -> Results:
    """Return how every run stands.

    `elsewhere` holds MLflow's runs of which nothing but MLflow's word is at hand.
    """
    found: dict[str | None, RemoteRun] = dict(elsewhere.items())
    for view in views:
        known = receipt.runs.get(view.fingerprint) if receipt else None
        if known is not None:
            own = derived.get(view.run) if view.final is not None else None
            found[view.fingerprint] = remote(view, known, own)
    server = receipt.address if receipt else None
    return assemble(project, layout, server, found, checked=False)
