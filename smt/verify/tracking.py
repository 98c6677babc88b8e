"""MLflow, read point by point, against what the runs' files say."""

from collections.abc import Iterable, Mapping

from smt.errors import UserError
from smt.runs.paths import Layout
from smt.tracking import client as mlflow
from smt.tracking.client import Point, RemoteRun, Server
from smt.tracking.view import RunView, milliseconds
from smt.verify import expected
from smt.verify.expected import Receipt
from smt.verify.ledger import NOTHING, Ledger

MLFLOW = "MLflow"


def connect(layout: Layout, ledger: Ledger) -> tuple[Server, dict[str, RemoteRun]] | None:
    """Return MLflow and its runs by fingerprint; None, with a note why, if it is out of reach."""
    uri = layout.tracking_uri()
    if mlflow.is_missing(uri):
        ledger.note(MLFLOW, f"nothing to compare with: no {mlflow.public(uri)}")
        return None
    try:
        server = Server.of(layout)
        runs = server.runs()
    except UserError as error:
        ledger.note(MLFLOW, f"not compared: {str(error).split(';')[0]}")
        return None
    return server, {run.tags.get("smt.fingerprint", ""): run for run in reversed(runs)}


def check(
    server: Server,
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
        known = remote.get(view.fingerprint)
        if known is None:
            ledger.note(MLFLOW, f"{view.run} has not been sent yet: smt sync")
            continue
        ledger.look(MLFLOW, known.run_id)
        if receipt is not None and view.fingerprint in receipt.runs:
            ledger.expect(
                MLFLOW, f"receipt of {view.run}: run_id",
                receipt.runs[view.fingerprint]["run_id"], known.run_id, "MLflow",
            )  # fmt: skip
        _run(server, view, known, ledger)


def _run(server: Server, view: RunView, known: RemoteRun, ledger: Ledger) -> None:
    where = f"MLflow run {known.run_id} ({view.run})"
    files = view.folder
    ledger.expect(MLFLOW, f"{where}: status", known.status, view.status, files)
    ledger.expect(
        MLFLOW, f"{where}: start", known.start_milliseconds, milliseconds(view.created), files
    )
    for name, ours in view.params().items():
        ledger.expect(MLFLOW, f"{where}: param {name}", known.params.get(name), ours, files)
    for name in sorted(known.params.keys() - view.params().keys()):
        ledger.expect(MLFLOW, f"{where}: param {name}", known.params[name], NOTHING, files)
    for name, ours in view.tags().items():
        ledger.expect(MLFLOW, f"{where}: tag {name}", known.tags.get(name), ours, files)
    _metrics(server, view, known, where, ledger)


def _metrics(server: Server, view: RunView, known: RemoteRun, where: str, ledger: Ledger) -> None:
    every: dict[str, list[Point]] = {}
    for point in expected.points(view):
        every.setdefault(point.key, []).append(point)
    last = expected.latest(point for points in every.values() for point in points)
    for key in sorted(every.keys() | known.metrics.keys()):
        ledger.expect(
            MLFLOW, f"{where}: metric {key}", known.metrics.get(key, NOTHING),
            last.get(key, NOTHING), view.folder,
        )  # fmt: skip
        if key in every:
            _history(server, known.run_id, every[key], f"{where}: metric {key}", view, ledger)


def _history(
    server: Server, run_id: str, points: list[Point], where: str, view: RunView, ledger: Ledger
) -> None:
    """Compare all values of a metric; the first place where they differ stands for all."""
    theirs, ours = set(map(_key, server.history(run_id, points[0].key))), set(map(_key, points))
    ledger.checked[MLFLOW] += len(ours)
    if theirs == ours:
        return
    step, at, _ = min(theirs ^ ours)
    said, follows = (
        [value for *place, value in sorted(each) if place == [step, at]] for each in (theirs, ours)
    )
    place = f"{where} at step {step}"
    ledger.expect(MLFLOW, place, _values(said), _values(follows), view.folder)


def _values(values: list[str]) -> str:
    return " and ".join(values) or NOTHING


def _key(point: Point) -> tuple[int, int, str]:
    """Return a point in a form in which NaN is equal to NaN: step, time, value."""
    return point.step, point.milliseconds, repr(point.value)
