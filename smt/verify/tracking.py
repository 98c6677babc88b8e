"""MLflow's runs: derived from the files of the runs alone, and compared with the server.

The first is enough to make every table; the second compares every value of every metric.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from smt.config.experiments import Run
from smt.config.project import Project
from smt.errors import UserError
from smt.report.collect import Results, assemble
from smt.runs import record
from smt.runs.paths import Layout
from smt.runs.record import RunMetrics
from smt.tracking import client as mlflow
from smt.tracking.client import Point, RemoteRun, TrackingClient
from smt.tracking.view import RunView, milliseconds
from smt.verify.derive import Derived
from smt.verify.ledger import NOTHING, Ledger

MLFLOW = "MLflow"
FINAL = "final/"


# --- derived from the files ---------------------------------------------------------------------


class Address(TrackingClient):
    """The address of MLflow's pages, without a connection: enough for links in tables."""

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
    def of(cls, server: TrackingClient, remote: Mapping[str, RemoteRun]) -> "Receipt":
        """Return the receipt that a sync would have written of these runs of MLflow."""
        keys = ("run_id", "experiment_id", "status")
        runs = {name: {key: getattr(run, key) for key in keys} for name, run in remote.items()}
        return cls(Address(server.uri, server.family), runs)


def latest(points: Iterable[Point]) -> dict[str, float]:
    """Return the last value of each metric, as MLflow takes it: by step, then time, then value."""
    last: dict[str, Point] = {}
    for point in points:
        previous = last.get(point.key)
        if previous is None or _order(point) >= _order(previous):
            last[point.key] = point
    return {key: point.value for key, point in last.items()}


def _order(point: Point) -> tuple[int, int, float]:
    return point.step, point.milliseconds, point.value


def expected_points(view: RunView) -> list[Point]:
    """Return every point of a run that is done."""
    return [*view.points, *view.final_points, *view.evaluation_points]


def expected_run(view: RunView, entry: Mapping[str, Any], derived: Derived | None) -> RemoteRun:
    """Return the run that MLflow should have, with final numbers derived from the journal."""
    metrics = latest(expected_points(view))
    if derived is not None and view.final is not None:
        metrics = {
            **{key: value for key, value in metrics.items() if not _is_derived(key, view.final)},
            **{f"{FINAL}{key}": value for key, value in derived.metrics.items()},
            f"{FINAL}epochs": derived.epochs,
            f"{FINAL}steps": derived.steps,
        }
    return RemoteRun(
        run_id=entry["run_id"],
        experiment_id=entry["experiment_id"],
        status=entry["status"],
        start_milliseconds=milliseconds(view.created),
        params=view.params(),
        tags=view.tags(),
        metrics=metrics,
    )


def _is_derived(key: str, final: RunMetrics) -> bool:
    return key.startswith(FINAL) and key.removeprefix(FINAL) in final.metrics


def expected_results(
    project: Project,
    layout: Layout,
    views: Iterable[RunView],
    derived: Mapping[Run, Derived],
    receipt: Receipt | None,
    elsewhere: Mapping[str, RemoteRun],
) -> Results:
    """Return state and final numbers of every run.

    `elsewhere` holds MLflow's runs whose files are not here.
    """
    remote: dict[str | None, RemoteRun] = dict(elsewhere.items())
    for view in views:
        entry = receipt.runs.get(view.fingerprint) if receipt else None
        if entry is not None:
            final = derived.get(view.run) if view.final is not None else None
            remote[view.fingerprint] = expected_run(view, entry, final)
    server = receipt.address if receipt else None
    return assemble(project, layout, server, remote, checked=False)


# --- compared with MLflow -----------------------------------------------------------------------


def connect(layout: Layout, ledger: Ledger) -> tuple[TrackingClient, dict[str, RemoteRun]] | None:
    """Return MLflow and its runs by fingerprint; None, with a note why, if it is out of reach."""
    uri = layout.tracking_uri()
    if mlflow.is_missing(uri):
        ledger.add_note(MLFLOW, f"nothing to compare with: no {mlflow.redact_password(uri)}")
        return None
    try:
        server = TrackingClient.from_layout(layout)
        runs = server.runs()
    except UserError as error:
        ledger.add_note(MLFLOW, f"not compared: {str(error).split(';')[0]}")
        return None
    return server, {run.tags.get("smt.fingerprint", ""): run for run in reversed(runs)}


def check(
    server: TrackingClient,
    remote: Mapping[str, RemoteRun],
    views: Iterable[RunView],
    receipt: Receipt | None,
    ledger: Ledger,
) -> None:
    """Compare params, tags and every value of every metric of each run that is done.

    Others are still being sent: they are compared once they are done.
    """
    for view in views:
        if view.final is None:
            continue
        remote_run = remote.get(view.fingerprint)
        if remote_run is None:
            ledger.add_note(MLFLOW, f"{view.run} has not been sent yet: smt sync")
            continue
        ledger.add_item(MLFLOW, remote_run.run_id)
        if receipt is not None and view.fingerprint in receipt.runs:
            ledger.compare(
                MLFLOW, f"receipt of {view.run}: run_id",
                receipt.runs[view.fingerprint]["run_id"], remote_run.run_id, "MLflow",
            )  # fmt: skip
        _run(server, view, remote_run, ledger)


def _run(server: TrackingClient, view: RunView, remote: RemoteRun, ledger: Ledger) -> None:
    where = f"MLflow run {remote.run_id} ({view.run})"
    files = view.folder
    ledger.compare(MLFLOW, f"{where}: status", remote.status, view.status, files)
    ledger.compare(
        MLFLOW, f"{where}: start", remote.start_milliseconds, milliseconds(view.created), files
    )
    for name, value in view.params().items():
        ledger.compare(MLFLOW, f"{where}: param {name}", remote.params.get(name), value, files)
    for name in sorted(remote.params.keys() - view.params().keys()):
        ledger.compare(MLFLOW, f"{where}: param {name}", remote.params[name], NOTHING, files)
    for name, value in view.tags().items():
        ledger.compare(MLFLOW, f"{where}: tag {name}", remote.tags.get(name), value, files)
    _metrics(server, view, remote, where, ledger)


def _metrics(
    server: TrackingClient, view: RunView, remote: RemoteRun, where: str, ledger: Ledger
) -> None:
    series: dict[str, list[Point]] = {}
    for point in expected_points(view):
        series.setdefault(point.key, []).append(point)
    last = latest(point for points in series.values() for point in points)
    for key in sorted(series.keys() | remote.metrics.keys()):
        ledger.compare(
            MLFLOW, f"{where}: metric {key}", remote.metrics.get(key, NOTHING),
            last.get(key, NOTHING), view.folder,
        )  # fmt: skip
        if key in series:
            _history(server, remote.run_id, series[key], f"{where}: metric {key}", view, ledger)


def _history(
    server: TrackingClient,
    run_id: str,
    points: list[Point],
    where: str,
    view: RunView,
    ledger: Ledger,
) -> None:
    """Compare all values of a metric; the first place where they differ stands for all."""
    remote = set(map(_key, server.history(run_id, points[0].key)))
    expected = set(map(_key, points))
    ledger.comparisons[MLFLOW] += len(expected)
    if remote == expected:
        return
    step, at, _ = min(remote ^ expected)
    place = f"{where} at step {step}"
    actual, derived = (_values(history, step, at) for history in (remote, expected))
    ledger.compare(MLFLOW, place, actual, derived, view.folder)


def _values(history: Iterable[tuple[int, int, str]], step: int, milliseconds: int) -> str:
    """Return the values that a metric has at one step and time."""
    values = sorted(value for *place, value in history if place == [step, milliseconds])
    return " and ".join(values) or NOTHING


def _key(point: Point) -> tuple[int, int, str]:
    """Return a point in a form in which NaN is equal to NaN: step, time, value."""
    return point.step, point.milliseconds, repr(point.value)
