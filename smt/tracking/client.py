"""MLflow, reached through one tracking URI: a database, or a server over HTTP.

MLflow takes two seconds to import, so it is imported where a connection is made.
"""

import fcntl
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from smt.errors import UserError, missing_package
from smt.runs.paths import Layout

BATCH = 1000
"""Metrics that MLflow takes in one request; it takes 100 parameters or tags."""

UI_PORT = 5000
"""Where `smt ui` serves a database, and where links to its runs lead."""

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default tries a dead server for four minutes
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # a slow server is waited for: nobody waits for us
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "600",  # a file of weights has hundreds of MB
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

_PREPARING = 0x736D74
"""Names the lock of a PostgreSQL server under which one process makes MLflow's tables."""

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


def runs_url(address: str, experiment_ids: Sequence[str]) -> str:
    """Return the page of these experiments' runs and curves; without any, of all experiments."""
    if not experiment_ids:
        return f"{address}/#/experiments?{TRAINING}"
    page = f"experiments/{experiment_ids[0]}/runs?"
    if len(experiment_ids) > 1:
        page = f"compare-experiments/s?experiments={_listed(experiment_ids)}&"
    return f"{address}/#/{page}{TRAINING}&compareRunsMode=CHART"


def _listed(values: Iterable[str]) -> str:
    """Return a JSON list of strings as it stands in a link."""
    return quote(json.dumps(list(values), separators=(",", ":")), safe=",")


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
        if isinstance(error, ImportError) and (missing := missing_package(error)):
            raise missing from None
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
    from sqlalchemy import make_url

    artifacts = layout.artifacts.resolve().as_uri()
    with _answering(uri):
        url = make_url(uri)
        if url.get_backend_name() == "sqlite":
            _prepare_file(Path(url.database or ""), artifacts)
        else:
            _prepare_database(uri, artifacts)


def _prepare_file(database: Path, artifacts: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if database.exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    temporary = database.with_name(f".{database.name}.new")
    with suppress(FileNotFoundError):
        temporary.unlink()
    SqlAlchemyStore(f"sqlite:///{temporary}", artifacts).engine.dispose()
    temporary.replace(database)


def _prepare_database(uri: str, artifacts: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import create_engine, inspect, text

    engine = create_engine(uri, connect_args={"connect_timeout": 5})
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            # The folder's lock is of this folder alone; others may be sending to the database too.
            connection.execute(text("select pg_advisory_lock(:key)"), {"key": _PREPARING})
        if not inspect(connection).get_table_names():
            SqlAlchemyStore(uri, artifacts).engine.dispose()
    engine.dispose()  # a lock ends with its connection


def is_missing(uri: str) -> bool:
    """Return whether `uri` is an SQLite file that is not there: nothing was ever sent."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


class Server:
    """A connection. Every method raises UserError, in one line, if MLflow does not answer."""

    def __init__(self, uri: str, family: str, artifacts: Path) -> None:
        configure()
        with _answering(uri):
            from mlflow.tracking.client import MlflowClient

            self._client = MlflowClient(uri)
        self.uri = uri
        self.family = family
        self._artifacts = artifacts
        self._ids: dict[str, str] = {}

    @classmethod
    def of(cls, layout: Layout) -> "Server":
        """Return the connection for a scale's runs; experiments are `smt-SCALE/TABLE`."""
        return cls(layout.tracking_uri(), f"smt-{layout.scale}", layout.artifacts)

    def experiments(self) -> dict[str, str]:
        """Return the id of each of the scale's MLflow experiments that is there, by its table."""
        prefix = f"{self.family}/"
        with _answering(self.uri):
            found = self._client.search_experiments(filter_string=f"name LIKE '{prefix}%'")
        self._ids = {
            each.name.removeprefix(prefix): each.experiment_id
            for each in sorted(
                found, key=lambda each: (len(each.experiment_id), each.experiment_id)
            )
        }
        return self._ids

    def make_experiment(self, table: str) -> str:
        """Return the id of a table's MLflow experiment, which is made if need be."""
        if table in self._ids:
            return self._ids[table]
        from mlflow.exceptions import MlflowException

        name = f"{self.family}/{table}"
        # A server chooses where its artifacts go; for a database this side does.
        place = (self._artifacts / self.family / table).resolve()
        location = None if is_http(self.uri) else place.as_uri()
        with _answering(self.uri):
            try:
                self._client.create_experiment(name, location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.get_experiment_by_name(name)  # another host may have been first
        if found is None or found.lifecycle_stage != "active":
            raise UserError(
                f"MLflow at {public(self.uri)}: experiment {name} was deleted there; restore it "
                "(mlflow experiments restore), or purge it (mlflow gc)"
            )
        self._ids[table] = found.experiment_id
        return self._ids[table]

    def runs(self) -> list[RemoteRun]:
        """Return every run of the scale, the first made first."""
        experiments = list(self.experiments().values())
        if not experiments:
            return []
        found: list[RemoteRun] = []
        token: str | None = None
        with _answering(self.uri):
            while True:
                page = self._client.search_runs(experiments, max_results=1000, page_token=token)
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

    def create(
        self, table: str, name: str, start_milliseconds: int, tags: Mapping[str, str]
    ) -> RemoteRun:
        """Return a new run with these tags in a table's MLflow experiment."""
        experiment = self.make_experiment(table)
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

    def send_files(self, run_id: str, files: Sequence[Path]) -> None:
        """Add files to a run's artifacts, by their names; one that is there is replaced."""
        with _answering(self.uri):
            for file in files:
                self._client.log_artifact(run_id, str(file))

    def send_params(self, run_id: str, name: str, params: Mapping[str, Any]) -> None:
        """Add a file of YAML to a run's artifacts."""
        with _answering(self.uri):
            self._client.log_dict(run_id, dict(params), name)

    def register(self, model: str, run_id: str, file: str, tags: Mapping[str, str]) -> str | None:
        """Enter a run's artifact in the model registry; return its version, or None if it is there.

        It is there if a version of `model` has the same `tags`.
        """
        from mlflow.exceptions import MlflowException

        with _answering(self.uri):
            try:
                self._client.create_registered_model(model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            for version in self._client.search_model_versions(f"name = '{model}'"):
                if tags.items() <= version.tags.items():
                    return None
            source = f"{self._client.get_run(run_id).info.artifact_uri}/{file}"
            made = self._client.create_model_version(model, source, run_id, tags=dict(tags))
        return str(made.version)

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

    def curves_url(self, runs: Sequence[RemoteRun], metric: str) -> str:
        """Return where a browser shows a metric's curves of several runs, and compares these."""
        key = _listed([metric])
        ids = _listed(run.run_id for run in runs)
        experiments = _listed(dict.fromkeys(run.experiment_id for run in runs))
        page = f"{web(self.uri)}/#/metric/?runs={ids}&experiments={experiments}"
        return f"{page}&metric={key[3:-3]}&plot_metric_keys={key}&{TRAINING}"


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
