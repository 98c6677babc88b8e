"""The benchmark of tracking and tables runs at a small size; times are not checked."""

import os
import re

import pytest

from tests.helpers import ROOT, forkserver


@pytest.fixture
def benchmark(demo_data, tmp_path):
    """Return a function that runs it on the demo's manifests and returns its output."""
    manifests = demo_data / "results" / "demo" / "data"

    def run(*arguments):
        result = forkserver.run(
            str(ROOT / "benchmarks" / "results.py"), "--manifests", str(manifests), *arguments,
            cwd=tmp_path, env=dict(os.environ),
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.mark.slow
@pytest.mark.servers
def test_the_benchmark_of_tracking_and_tables_runs(benchmark):
    output = benchmark(
        "--runs", "20", "--epochs", "2", "--sent-runs", "1", "--points", "2", "--steps", "3",
        "--rounds", "1",
    )  # fmt: skip
    for where in ("SQLite", "mlflow server"):
        for way in ("smt sync", "log_metric", "log_metric, asynchronous",
                    "log_metric, asynchronous, buffered"):  # fmt: skip
            assert re.search(rf"^{where}: {way}: \d+ points/s, smt sync [\d.]+ times", output, re.M)
    # 20 runs of 2 epochs and 8 metrics, with 7 final numbers and 3 of the evaluation each.
    assert f"smt sync: {20 * (2 * 8 + 7 + 3)} points in" in output
    assert "all 20 runs read and checked" in output
    assert "get_run and get_metric_history run by run, metric by metric" in output
    assert len(re.findall(r"^tracking with a line every \d+ steps: ", output, re.M)) == 2


def test_a_store_filled_by_sql_equals_one_filled_by_sync(benchmark):
    output = benchmark(
        "--only", "tables", "--rows", "--runs", "5", "--epochs", "2", "--rounds", "1"
    )
    assert "only reading is measured" in output  # it syncs once more, which must find nothing new
    assert "all 5 runs read and checked" in output
