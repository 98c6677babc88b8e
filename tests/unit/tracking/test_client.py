"""What is said of where MLflow keeps its runs."""

from types import SimpleNamespace

import pytest

from smt.runs.paths import Layout
from smt.tracking import client, sync


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:secret@db.example.org:5432/mlflow",
         "postgresql://me:***@db.example.org:5432/mlflow"),
        ("https://me:secret@mlflow.example.org", "https://me:***@mlflow.example.org"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////results/mlflow.db", "sqlite:////results/mlflow.db"),
    ],
)  # fmt: skip
def test_a_password_is_never_shown(uri, shown):
    assert client.public(uri) == shown


def test_the_receipt_of_a_sync_holds_no_password(tmp_path):
    layout = Layout("demo", tmp_path / "results", tmp_path / "data")
    uri = "postgresql://me:secret@db.example.org/mlflow"
    there = SimpleNamespace(uri=uri, family="smt", experiments=lambda: {})
    sync._write_receipt(layout, there, {}, [])
    text = layout.sync_receipt.read_text()
    assert "me:***@db.example.org" in text and "secret" not in text
