"""MLflow, reached through one tracking URI: a database, or a server over HTTP.

MLflow takes two seconds to import, so it is imported where a connection is made.
"""

import fcntl
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from smt.errors import UserError
from smt.layout import Layout

BATCH = 1000
"""Metrics that MLflow takes in one request; it takes 100 parameters or tags."""

UI_PORT = 5000
"""Where `smt ui` serves a database, and where links to its runs lead."""

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default tries a dead server for four minutes
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

TRAINING = "workflowType=machine_learning"
"""Part of a link that makes MLflow show training runs; it opens on pages for language models."""


class Point(NamedTuple):
    """One value of one metric. MLflow keeps equal points once."""

    key: str
    value: float
    milliseconds: int
    """Since 1970."""
    step: int


@dataclass(frozen=True)
class RemoteRun:
    """What MLflow holds of a run, without the history of its metrics."""

    run_id: str
    experiment_id: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    start_milliseconds: int
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Each metric's last value."""


def configure() -> None:
    """Set what MLflow reads from the environment when it is imported; the user's own stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def is_http(uri: str) -> bool:
    """Return whether `uri` is a server rather than a database."""
    return uri.startswith(("http://", "https://"))


def public(uri: str) -> str:
    """Return `uri` without a password: fit for files and messages."""
    return re.sub(r"(//[^/@:]*):[^/@]*@", r"\1:***@", uri)


def web(uri: str) -> str:
    """Return where a browser finds MLflow's pages: a database's only while `smt ui` serves it."""
    if not is_http(uri):
        return f"http://127.0.0.1:{UI_PORT}"
    return re.sub(r"//[^/@]*@", "//", uri).rstrip("/")


def runs_url(address: str, experiment_id: str | None) -> str:
    """Return the page of an experiment's runs, or of all experiments."""
    page = f"experiments/{experiment_id}/runs" if experiment_id else "experiments"
    return f"{address}/#/{page}?{TRAINING}"


@contextmanager
def locked(layout: Layout, waiting: str) -> Iterator[None]:
    """Hold the results folder's lock for writing to MLflow; a process that ends frees it.

    `waiting` is printed to stderr if another process holds it.
    """
    path = layout.tracking_lock
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); give a folder that can: "
            "smt --results DIR, or SMT_RESULTS"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Turn what MLflow and databases raise into one line that names the URI."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"MLflow at {public(uri)} does not answer: {public(cause)[:300]}; start that server or "
            "set MLFLOW_TRACKING_URI to one that runs, then run `smt sync` again: nothing is lost, "
            "the journals are on disk"
        ) from None


def prepare(layout: Layout, uri: str) -> None:
    """Make the tables of a database that has none. The caller holds the lock.

    Several processes that open a new database at once break it, hence the lock; an SQLite file is
    made under another name, so that one which is there is whole.
    """
    if is_http(uri):
        return
    configure()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import create_engine, inspect, make_url

    artifacts = layout.artifacts.resolve().as_uri()
    with _answering(uri):
        url = make_url(uri)
        if url.get_backend_name() != "sqlite":
            arguments: dict[str, Any] = {"connect_timeout": 5}
            tables = inspect(create_engine(url, connect_args=arguments)).get_table_names()
            if not tables:
                SqlAlchemyStore(uri, artifacts)
            return
        database = Path(url.database or "")
        if database.exists():
            return
        database.parent.mkdir(parents=True, exist_ok=True)
        temporary = database.with_name(f".{database.name}.new")
        with suppress(FileNotFoundError):
            temporary.unlink()
        SqlAlchemyStore(f"sqlite:///{temporary}", artifacts).engine.dispose()
        os.replace(temporary, database)


def is_missing(uri: str) -> bool:
    """Return whether `uri` is an SQLite file that is not there: nothing was ever sent."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


class Server:
    """A connection. Every method raises UserError, in one line, if MLflow does not answer."""

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        configure()
        with _answering(uri):
            from mlflow.tracking.client import MlflowClient

            self._client = MlflowClient(uri)
        self.uri = uri
        self.experiment = experiment
        self._artifacts = artifacts
        self._experiment_id: str | None = None

    @classmethod
    def of(cls, layout: Layout) -> "Server":
        """Return the connection for a scale's runs, all of which are in one MLflow experiment."""
        return cls(layout.tracking_uri(), f"smt-{layout.scale}", layout.artifacts)

    def experiment_id(self) -> str | None:
        """Return the id of the scale's MLflow experiment, or None where there is none yet."""
        if self._experiment_id is None:
            with _answering(self.uri):
                found = self._client.get_experiment_by_name(self.experiment)
            if found is not None and found.lifecycle_stage != "active":
                raise UserError(
                    f"MLflow at {public(self.uri)}: experiment {self.experiment} was deleted "
                    "there; restore it (mlflow experiments restore), or purge it (mlflow gc)"
                )
            self._experiment_id = found.experiment_id if found else None
        return self._experiment_id

    def make_experiment(self) -> str:
        """Return the id of the scale's MLflow experiment, which is made if need be."""
        from mlflow.exceptions import MlflowException

        known = self.experiment_id()
        if known is not None:
            return known
        # A server chooses where its artifacts go; for a database this side does.
        location = None if is_http(self.uri) else self._artifacts.resolve().as_uri()
        with _answering(self.uri):
            try:
                self._client.create_experiment(self.experiment, location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        known = self.experiment_id()  # another host may have been first
        assert known is not None
        return known

    def runs(self) -> list[RemoteRun]:
        """Return every run of the scale, the first made first."""
        experiment = self.experiment_id()
        if experiment is None:
            return []
        found: list[RemoteRun] = []
        token: str | None = None
        with _answering(self.uri):
            while True:
                page = self._client.search_runs([experiment], max_results=1000, page_token=token)
                found.extend(_remote(run) for run in page)
                token = page.token
                if not token:
                    break
        return sorted(found, key=lambda run: (run.start_milliseconds, run.run_id))

    def history(self, run_id: str, key: str) -> list[Point]:
        """Return every point of a metric, by step and then by time."""
        with _answering(self.uri):
            found = self._client.get_metric_history(run_id, key)
        points = (Point(each.key, each.value, each.timestamp, each.step) for each in found)
        return sorted(points, key=lambda point: (point.step, point.milliseconds))

    def create(self, name: str, start_milliseconds: int, tags: Mapping[str, str]) -> RemoteRun:
        """Return a new run with these tags."""
        experiment = self.make_experiment()
        with _answering(self.uri):
            run = self._client.create_run(
                experiment, start_time=start_milliseconds, tags=dict(tags), run_name=name
            )
        return _remote(run)

    def send(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add points, parameters and tags to a run; tags come last, when the rest is there."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*point) for point in points]
        parameters = [Param(key, value) for key, value in (params or {}).items()]
        labels = [RunTag(key, value) for key, value in (tags or {}).items()]
        with _answering(self.uri):
            for start in range(0, len(metrics), BATCH):
                self._client.log_batch(run_id, metrics=metrics[start : start + BATCH])
            for start in range(0, len(parameters), 100):
                self._client.log_batch(run_id, params=parameters[start : start + 100])
            for start in range(0, len(labels), 100):
                self._client.log_batch(run_id, tags=labels[start : start + 100])

    def set_status(self, run_id: str, status: str, end_milliseconds: int | None) -> None:
        """Set a run's status and, unless it is RUNNING, its end."""
        with _answering(self.uri):
            if end_milliseconds is None:
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status, end_milliseconds)

    def remove_tag(self, run_id: str, key: str) -> None:
        with _answering(self.uri):
            self._client.delete_tag(run_id, key)

    def delete(self, run_id: str) -> None:
        """Delete a run; MLflow keeps it in its bin until `mlflow gc`."""
        with _answering(self.uri):
            self._client.delete_run(run_id)

    def run_url(self, run: RemoteRun) -> str:
        """Return where a browser shows a run; for a database, while `smt ui` serves it."""
        return f"{web(self.uri)}/#/experiments/{run.experiment_id}/runs/{run.run_id}?{TRAINING}"

    def compare_url(self, runs: Sequence[RemoteRun]) -> str:
        """Return where a browser shows several runs side by side."""
        ids = ",".join(f"%22{run.run_id}%22" for run in runs)
        experiments = f"%5B%22{runs[0].experiment_id}%22%5D"
        pages = f"{web(self.uri)}/#/compare-runs"
        return f"{pages}?runs=%5B{ids}%5D&experiments={experiments}&{TRAINING}"


def _remote(run: Any) -> RemoteRun:
    return RemoteRun(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        status=run.info.status,
        start_milliseconds=run.info.start_time,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        metrics=dict(run.data.metrics),
    )
