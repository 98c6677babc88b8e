"""Passwords of tracking URIs are redacted."""

from types import SimpleNamespace

import pytest

from smt.runs.paths import Layout
from smt.tracking import client, sync


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql://me:secret@db.example.org:5432/mlflow",
         "postgresql://me:***@db.example.org:5432/mlflow"),
        ("https://me:secret@mlflow.example.org", "https://me:***@mlflow.example.org"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////results/mlflow.db", "sqlite:////results/mlflow.db"),
    ],
)  # fmt: skip
def test_a_password_is_redacted(uri, expected):
    assert client.redact_password(uri) == expected


def test_the_receipt_of_a_sync_holds_no_password(tmp_path):
    layout = Layout("demo", tmp_path / "results", tmp_path / "data")
    uri = "postgresql://me:secret@db.example.org/mlflow"
    fake_client = SimpleNamespace(uri=uri, family="smt", experiments=lambda: {})
    sync._write_receipt(layout, fake_client, {}, [])
    text = layout.sync_receipt.read_text()
    assert "me:***@db.example.org" in text and "secret" not in text
