"""The benchmark of tracking and tables runs, at a small size; no time is held to anything."""

import os
import re

import pytest

from tests.helpers import ROOT, forkserver


@pytest.fixture
def benchmark(demo_data, tmp_path):
    """Run it on manifests that are there; return what it prints."""
    manifests = demo_data / "results" / "demo" / "data"

    def run(*arguments):
        done = forkserver.run(
            str(ROOT / "benchmarks" / "results.py"), "--manifests", str(manifests), *arguments,
            cwd=tmp_path, env=dict(os.environ),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
@pytest.mark.servers
def test_the_benchmark_of_tracking_and_tables_runs(benchmark):
    said = benchmark(
        "--runs", "20", "--epochs", "2", "--sent-runs", "1", "--few", "2", "--steps", "3",
        "--rounds", "1",
    )  # fmt: skip
    for where in ("SQLite", "mlflow server"):
        for way in ("smt sync", "log_metric", "log_metric, asynchronous",
                    "log_metric, asynchronous, buffered"):  # fmt: skip
            assert re.search(rf"^{where}: {way}: \d+ points/s, smt sync [\d.]+ times", said, re.M)
    # 20 runs of 2 epochs and 8 metrics, with 7 final numbers and 3 of the evaluation each.
    assert f"smt sync: {20 * (2 * 8 + 7 + 3)} points in" in said
    assert "all 20 runs read and checked" in said
    assert "get_run and get_metric_history run by run, metric by metric" in said
    assert len(re.findall(r"^tracking with a line every \d+ steps: ", said, re.M)) == 2


def test_a_store_that_was_filled_by_sql_is_what_a_sync_would_make(benchmark):
    said = benchmark("--only", "tables", "--rows", "--runs", "5", "--epochs", "2", "--rounds", "1")
    assert "only reading is measured" in said  # it syncs once more, which must find nothing new
    assert "all 5 runs read and checked" in said
