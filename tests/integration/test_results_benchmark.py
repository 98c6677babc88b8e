"""The benchmark of tracking and tables runs, at a small size; no time is held to anything."""

import re
import subprocess
import sys

from tests.helpers import ROOT

BENCHMARK = ROOT / "benchmarks" / "results.py"


def test_the_benchmark_of_tracking_and_tables_runs():
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--runs", "20", "--epochs", "2", "--sent-runs", "1",
         "--few", "8", "--steps", "3", "--rounds", "1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout
    for where in ("SQLite", "mlflow server"):
        for way in ("smt sync", "log_metric", "log_metric, asynchronous",
                    "log_metric, asynchronous, buffered"):  # fmt: skip
            assert re.search(rf"^{where}: {way}: \d+ points/s, smt sync [\d.]+ times", said, re.M)
    # 20 runs of 2 epochs and 8 metrics, with 7 final numbers and 3 of the evaluation each.
    assert f"smt sync: {20 * (2 * 8 + 7 + 3)} points in" in said
    assert "all 20 runs read and checked" in said
    assert "get_run and get_metric_history run by run, metric by metric" in said
    assert len(re.findall(r"^tracking with a line every \d+ steps: ", said, re.M)) == 2


def test_a_store_that_was_filled_by_sql_is_what_a_sync_would_make():
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--only", "tables", "--rows", "--runs", "5", "--epochs", "2"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # it syncs once more, which must find nothing new
    assert "only reading is measured" in done.stdout
    assert "all 5 runs read and checked" in done.stdout
