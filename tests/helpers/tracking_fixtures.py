"""Fixtures of the tests of tracking and report: SQLite databases and servers."""

import shutil

import pytest

from smt.runs.paths import Layout
from smt.tracking import client
from tests.helpers.run_files import RunFiles
from tests.helpers.tracking_servers import mlflow_server, postgres

client.configure()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database with MLflow's tables and no runs, to be copied; creating it takes a second."""
    layout = Layout("demo", tmp_path_factory.mktemp("database"))
    database = layout.results / "mlflow.db"
    client.prepare(layout, f"sqlite:///{database}")
    return database


@pytest.fixture
def make_files(tmp_path, monkeypatch, empty_database):
    """Return a function that makes an empty results folder with a database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def make(**options):
        files = RunFiles(tmp_path, **options)
        shutil.copy(empty_database, files.layout.results / "mlflow.db")
        return files

    return make


@pytest.fixture
def files(make_files):
    """An empty results folder at demo scale."""
    return make_files()


@pytest.fixture(scope="session")
def started_mlflow(tmp_path_factory):
    """`mlflow server`, which takes ten CPU-seconds to start."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def mlflow(started_mlflow):
    """An `mlflow server` without runs of this project."""
    yield started_mlflow
    started_mlflow.rename_experiments()


@pytest.fixture(scope="session")
def postgresql():
    """The URI of a PostgreSQL, without a database name."""
    with postgres() as uri:
        yield uri
