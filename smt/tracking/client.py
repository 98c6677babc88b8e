"""A client of MLflow for one tracking URI: a database, or a server over HTTP.

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

from smt.errors import UserError, first_line, missing_package
from smt.runs import shared_folder
from smt.runs.atomic import RESULTS_REMEDY, explained
from smt.runs.paths import Layout

MAX_METRICS = 1000
MAX_PARAMS = 100
"""Metrics, and params or tags, that MLflow accepts in one `log_batch` request."""

UI_PORT = 5000
"""Default port of `smt ui`; links to runs in a database lead there."""

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default a dead server is retried for four minutes
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds; no training waits for a request
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "600",  # weights are hundreds of MB
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

_ADVISORY_LOCK = 0x736D74
"""Key of the PostgreSQL advisory lock under which one process creates MLflow's tables."""

TRAINING_VIEW = "workflowType=machine_learning"
"""Query of a link to MLflow's pages on training runs; by default it shows those on LLMs."""


class Point(NamedTuple):
    """One value of one metric. MLflow stores equal points once."""

    key: str
    value: float
    milliseconds: int
    """Since 1970, MLflow's `timestamp`."""
    step: int


@dataclass(frozen=True)
class RemoteRun:
    """A run in MLflow, without the history of its metrics."""

    run_id: str
    experiment_id: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    start_milliseconds: int
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Last value of each metric."""


def configure() -> None:
    """Set the environment variables that MLflow reads at import, unless the user has set them."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def is_http(uri: str) -> bool:
    """Return whether `uri` is a server's, not a database's."""
    return uri.startswith(("http://", "https://"))


def redact_password(uri: str) -> str:
    """Return `uri` with `***` for its password, as files and messages show it."""
    return re.sub(r"(//[^/@:]*):[^/@]*@", r"\1:***@", uri)


def web_url(uri: str) -> str:
    """Return the address of MLflow's UI; for a database, that of `smt ui` on its default port."""
    if not is_http(uri):
        return f"http://127.0.0.1:{UI_PORT}"
    return re.sub(r"//[^/@]*@", "//", uri).rstrip("/")


def runs_url(address: str, experiment_ids: Sequence[str]) -> str:
    """Return the link to the runs and curves of these experiments, or to all experiments."""
    if not experiment_ids:
        return f"{address}/#/experiments?{TRAINING_VIEW}"
    page = f"experiments/{experiment_ids[0]}/runs?"
    if len(experiment_ids) > 1:
        page = f"compare-experiments/s?experiments={_json_list(experiment_ids)}&"
    return f"{address}/#/{page}{TRAINING_VIEW}&compareRunsMode=CHART"


def _json_list(values: Iterable[str]) -> str:
    """Return a JSON list of strings, quoted for a URL."""
    return quote(json.dumps(list(values), separators=(",", ":")), safe=",")


@contextmanager
def locked(layout: Layout, waiting: str) -> Iterator[None]:
    """Hold the results folder's lock for writing to MLflow; the end of the process releases it.

    `waiting` is printed to stderr if another process holds the lock.

    Raises:
        UserError: the results folder cannot be written.
    """
    path = layout.tracking_lock
    with explained(path, RESULTS_REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _user_errors(uri: str) -> Iterator[None]:
    """Turn an exception of MLflow or a database into a UserError of one line with the URI."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
        if isinstance(error, ImportError) and (missing := missing_package(error)):
            raise missing from None
        cause = redact_password(first_line(error))[:300]
        raise UserError(
            f"MLflow at {redact_password(uri)} does not answer: {cause}; start that server or set "
            "MLFLOW_TRACKING_URI to one that runs, then run `smt sync` again: nothing is lost, the "
            "journals are on disk"
        ) from None


def prepare(layout: Layout, uri: str) -> None:
    """Create MLflow's tables in a database that has none. The caller holds the lock.

    Without a lock, several processes that open a new database at once corrupt it. An SQLite file is
    created under a temporary name, so that one with its final name is complete.

    Raises:
        UserError: the database does not answer.
    """
    if is_http(uri):
        return
    configure()
    from sqlalchemy import make_url

    artifacts = layout.artifacts.resolve().as_uri()
    with _user_errors(uri):
        url = make_url(uri)
        if url.get_backend_name() == "sqlite":
            _prepare_sqlite(Path(url.database or ""), artifacts)
        else:
            _prepare_database(uri, artifacts)


def _prepare_sqlite(database: Path, artifacts: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # The caller's lock is not enough: a database that was not seen would be replaced.
    if shared_folder.exists(database):
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
            # Processes of other results folders may use the same database, without that lock.
            connection.execute(text("select pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
        if not inspect(connection).get_table_names():
            SqlAlchemyStore(uri, artifacts).engine.dispose()
    engine.dispose()  # closes the connection, which releases the advisory lock


def is_missing(uri: str) -> bool:
    """Return whether `uri` is an SQLite file that does not exist: nothing was ever sent."""
    return uri.startswith("sqlite:///") and not shared_folder.exists(
        Path(uri.removeprefix("sqlite:///"))
    )


class TrackingClient:
    """MLflow's client for the runs of one scale; experiments are named `smt-SCALE/TABLE`.

    Every method that sends a request raises a UserError, in one line, if MLflow does not answer.
    """

    def __init__(self, uri: str, family: str, artifacts: Path) -> None:
        configure()
        with _user_errors(uri):
            from mlflow.tracking.client import MlflowClient

            self._client = MlflowClient(uri)
        self.uri = uri
        self.family = family
        self._artifacts = artifacts
        self._ids: dict[str, str] = {}

    @classmethod
    def from_layout(cls, layout: Layout) -> "TrackingClient":
        """Return the client for the scale and tracking URI of a layout."""
        return cls(layout.tracking_uri(), f"smt-{layout.scale}", layout.artifacts)

    def experiments(self) -> dict[str, str]:
        """Return the ids of the scale's MLflow experiments by table, in the order of the ids."""
        prefix = f"{self.family}/"
        with _user_errors(self.uri):
            experiments = self._client.search_experiments(filter_string=f"name LIKE '{prefix}%'")
        ids = {
            experiment.name.removeprefix(prefix): experiment.experiment_id
            for experiment in experiments
        }
        self._ids = dict(sorted(ids.items(), key=lambda item: (len(item[1]), item[1])))
        return self._ids

    def get_or_create_experiment(self, table: str) -> str:
        """Return the id of a table's MLflow experiment."""
        if table in self._ids:
            return self._ids[table]
        from mlflow.exceptions import MlflowException

        name = f"{self.family}/{table}"
        # A server has its own artifact store; for a database the client names the location.
        folder = (self._artifacts / self.family / table).resolve()
        location = None if is_http(self.uri) else folder.as_uri()
        with _user_errors(self.uri):
            try:
                self._client.create_experiment(name, location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # by another host
                    raise
            experiment = self._client.get_experiment_by_name(name)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise UserError(
                f"MLflow at {redact_password(self.uri)}: experiment {name} was deleted there; "
                "restore it (mlflow experiments restore), or purge it (mlflow gc)"
            )
        self._ids[table] = experiment.experiment_id
        return self._ids[table]

    def runs(self) -> list[RemoteRun]:
        """Return all runs of the scale by start time, the oldest first."""
        experiments = list(self.experiments().values())
        if not experiments:
            return []
        runs: list[RemoteRun] = []
        token: str | None = None
        with _user_errors(self.uri):
            while True:
                page = self._client.search_runs(experiments, max_results=1000, page_token=token)
                runs.extend(map(_remote_run, page))
                token = page.token
                if not token:
                    break
        return sorted(runs, key=lambda run: (run.start_milliseconds, run.run_id))

    def history(self, run_id: str, key: str) -> list[Point]:
        """Return all points of a metric, by step and then by time."""
        with _user_errors(self.uri):
            metrics = self._client.get_metric_history(run_id, key)
        points = (Point(m.key, m.value, m.timestamp, m.step) for m in metrics)
        return sorted(points, key=lambda point: (point.step, point.milliseconds))

    def set_experiment_tag(self, experiment_id: str, key: str, value: str) -> None:
        """Set a tag of an MLflow experiment."""
        with _user_errors(self.uri):
            self._client.set_experiment_tag(experiment_id, key, value)

    def create_run(
        self, table: str, name: str, start_milliseconds: int, tags: Mapping[str, str]
    ) -> RemoteRun:
        """Create a run with these tags in a table's MLflow experiment, and return it."""
        experiment_id = self.get_or_create_experiment(table)
        with _user_errors(self.uri):
            run = self._client.create_run(
                experiment_id, start_time=start_milliseconds, tags=dict(tags), run_name=name
            )
        return _remote_run(run)

    def log_batch(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log points, params and tags of a run; tags come last, once the rest has arrived."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*point) for point in points]
        mlflow_params = [Param(key, value) for key, value in (params or {}).items()]
        run_tags = [RunTag(key, value) for key, value in (tags or {}).items()]
        with _user_errors(self.uri):
            for start in range(0, len(metrics), MAX_METRICS):
                self._client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS])
            for start in range(0, len(mlflow_params), MAX_PARAMS):
                self._client.log_batch(run_id, params=mlflow_params[start : start + MAX_PARAMS])
            for start in range(0, len(run_tags), MAX_PARAMS):
                self._client.log_batch(run_id, tags=run_tags[start : start + MAX_PARAMS])

    def log_artifacts(self, run_id: str, files: Sequence[Path]) -> None:
        """Upload files to a run's artifacts; an artifact of the same name is replaced."""
        with _user_errors(self.uri):
            for file in files:
                self._client.log_artifact(run_id, str(file))

    def log_dict(self, run_id: str, values: Mapping[str, Any], file: str) -> None:
        """Write values to a YAML file in a run's artifacts."""
        with _user_errors(self.uri):
            self._client.log_dict(run_id, dict(values), file)

    def register_model(
        self, model: str, run_id: str, file: str, tags: Mapping[str, str]
    ) -> str | None:
        """Register a run's artifact as a version of `model`, and return the version.

        Returns None if a version with the same `tags` exists already.
        """
        from mlflow.exceptions import MlflowException

        with _user_errors(self.uri):
            try:
                self._client.create_registered_model(model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            for version in self._client.search_model_versions(f"name = '{model}'"):
                if tags.items() <= version.tags.items():
                    return None
            source = f"{self._client.get_run(run_id).info.artifact_uri}/{file}"
            version = self._client.create_model_version(model, source, run_id, tags=dict(tags))
        return str(version.version)

    def set_status(self, run_id: str, status: str, end_milliseconds: int | None) -> None:
        """Set a run's status and its end time, which is None while it runs."""
        with _user_errors(self.uri):
            if end_milliseconds is None:
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status, end_milliseconds)

    def delete_tag(self, run_id: str, key: str) -> None:
        with _user_errors(self.uri):
            self._client.delete_tag(run_id, key)

    def delete_run(self, run_id: str) -> None:
        """Delete a run; MLflow can restore it until `mlflow gc`."""
        with _user_errors(self.uri):
            self._client.delete_run(run_id)

    def run_url(self, run: RemoteRun) -> str:
        """Return the link to a run in MLflow's UI."""
        page = f"experiments/{run.experiment_id}/runs/{run.run_id}"
        return f"{web_url(self.uri)}/#/{page}?{TRAINING_VIEW}"

    def curves_url(self, runs: Sequence[RemoteRun], metric: str) -> str:
        """Return the link to the curves of a metric for several runs in MLflow's UI."""
        key = _json_list([metric])
        run_ids = _json_list(run.run_id for run in runs)
        experiments = _json_list(dict.fromkeys(run.experiment_id for run in runs))
        page = f"{web_url(self.uri)}/#/metric/?runs={run_ids}&experiments={experiments}"
        return f"{page}&metric={key[3:-3]}&plot_metric_keys={key}&{TRAINING_VIEW}"


def _remote_run(run: Any) -> RemoteRun:
    return RemoteRun(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        status=run.info.status,
        start_milliseconds=run.info.start_time,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        metrics=dict(run.data.metrics),
    )
