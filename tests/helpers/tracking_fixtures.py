"""Fixtures of the tests of tracking and report: real SQLite files, made once and copied."""

import shutil

import pytest

from smt.layout import Layout
from smt.tracking import server
from tests.helpers.run_files import RunFiles

server.configure()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database with MLflow's tables: making one takes a second."""
    layout = Layout("demo", tmp_path_factory.mktemp("database"))
    database = layout.results / "mlflow.db"
    server.prepare(layout, f"sqlite:///{database}")
    return database


@pytest.fixture
def make_files(tmp_path, monkeypatch, empty_database):
    """Return empty results folders, each with a database of its own."""
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
