"""Results as a DataFrame: a row each run and metric, with their types."""

import math
import os
import subprocess
import sys

import pandas
import pytest

from smt.config.experiments import Run
from smt.report.collect import collect
from smt.report.results import COLUMNS, frame
from smt.tracking.sync import sync
from tests.helpers import ROOT
from tests.helpers.documents import blocks
from tests.helpers.run_files import PARENT, S, T, remote

TRACKING = ROOT / "docs" / "tracking.md"


@pytest.fixture
def paper(make_files):
    """Paper scale with two seeds: SMT-T done, of SMT-S one done and one failed."""
    files = make_files(scale="paper", seeds=(0, 1))
    for seed, top1 in enumerate((82.0, 82.2)):
        files.finish(Run(experiment=T, seed=seed), top1)
    files.finish(Run(experiment=S, seed=0), 83.0)
    files.fail(Run(experiment=S, seed=1), "the loss is not finite at step 7")
    sync(files.project, files.layout)
    return files


def table(files, *names):
    return frame(collect(files.project, files.layout), names)


def test_a_row_each_run_and_metric(paper):
    data = table(paper)
    keys = [
        (run.experiment, run.seed, metric)
        for run in paper.project.runs
        for metric in paper.project.metrics_of(run.experiment)
    ]
    rows = list(zip(data.experiment, data.seed, data.metric, strict=True))
    assert sorted(rows) == sorted(keys)
    assert not data.duplicated(["experiment", "seed", "metric"]).any()


def test_values_are_of_runs_and_verdicts_of_experiments(paper):
    data = table(paper).set_index(["experiment", "seed", "metric"])
    first, second = (data.loc[(T, seed, "top1")] for seed in (0, 1))
    assert (first.value, second.value) == (82.0, 82.2)
    assert (first.delta, second.delta) == (-0.2, 0.0)
    for row in (first, second):
        assert (row.n, row.reported, row.verdict) == (2, 82.2, "reproduced")
        assert row["mean"] == pytest.approx(82.1) and row["std"] == pytest.approx(0.02**0.5)
        assert (row.table, row.tolerance, row.reported_kind) == ("imagenet1k", 0.2, "published")
    assert first.mlflow_run_id == remote(paper, Run(experiment=T, seed=0)).run_id
    assert first.fingerprint == paper.fingerprint(Run(experiment=T, seed=0))
    assert first.wall_seconds == 61.5
    assert (first.model, first.recipe, first.task) == ("smt_tiny", "imagenet1k", "classify")


def test_a_run_that_is_not_done_has_a_state_and_no_value(paper):
    data = table(paper).set_index(["experiment", "seed", "metric"])
    failed = data.loc[(S, 1, "top1")]
    assert (failed.state, failed.reason) == ("failed", "the loss is not finite at step 7")
    assert math.isnan(failed.value) and math.isnan(failed.delta)
    assert failed.n == 1  # the other seed's
    waits = data.loc[(PARENT, 0, "top1")]
    assert math.isnan(waits.value) and waits.n == 0


def test_named_tables_choose_their_runs_and_their_derived_numbers(paper):
    rungs = table(paper, "ablation_components")
    assert set(rungs.experiment) == {
        row.experiment for row in paper.project.tables["ablation_components"].rows
    }
    rung = rungs[(rungs.experiment == "ablation_stage3_msa") & (rungs.metric == "top1")].iloc[0]
    assert (rung.reported, rung.reported_kind) == (81.6, "derived")
    elsewhere = table(paper, "ablation_stacking")
    rung = elsewhere[elsewhere.experiment == "ablation_stage3_msa"].iloc[0]
    assert math.isnan(rung.reported) and rung.verdict == "not run"


def test_at_a_scale_that_is_not_compared_there_are_no_verdicts(files):
    files.finish(Run(experiment=T, seed=0), 96.0)
    sync(files.project, files.layout)
    data = table(files)
    done = data[data.value.notna() & data.reported.notna()]
    assert set(done.verdict) == {"not comparable"} and not data.comparable.any()
    assert data.interval.isna().all()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_command_writes_what_pandas_reads(paper, tmp_path, suffix):
    path = tmp_path / f"results.{suffix}"
    paper.smt("tables", "--frame", str(path), "--scale", "paper")
    expected = table(paper)
    if suffix == "parquet":
        read = pandas.read_parquet(path)
        assert {name: str(kind) for name, kind in read.dtypes.items()} == {
            name: kind for name, (kind, _) in COLUMNS.items()
        }
        pandas.testing.assert_frame_equal(read, expected)
    else:
        types = {name: kind for name, (kind, _) in COLUMNS.items()}
        read = pandas.read_csv(path, dtype=types, na_values=[""], keep_default_na=False)
        empty = {"reason": "", "unit": ""}
        pandas.testing.assert_frame_equal(read.fillna(empty), expected.fillna(empty))
    assert not paper.layout.tables.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--frame", "results.xlsx"), "results.xlsx: no such format; valid: .csv, .parquet"),
        (("sizes", "--frame", "results.csv"), "no run is behind sizes; valid: imagenet1k, "),
    ],
)
def test_a_mistake_is_one_line(files, arguments, message):
    done = files.smt("tables", *arguments, "--scale", "demo", check=False)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_a_file_that_cannot_be_written_is_one_line(files, read_only_folder):
    path = read_only_folder / "results.csv"
    done = files.smt("tables", "--frame", str(path), "--scale", "demo", check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "--frame FILE" in done.stderr


def test_the_example_of_the_documents_runs(paper, tmp_path):
    paper.smt("tables", "--frame", str(tmp_path / "results.parquet"), "--scale", "paper")
    ((_, example),) = blocks(TRACKING, "python")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=dict(os.environ),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "smt_tiny" in done.stdout and "82.1" in done.stdout


def test_tables_do_not_wait_for_matplotlib(files):
    script = (
        "import sys; from smt.cli import cli; cli(sys.argv[1:], standalone_mode=False); "
        "assert 'matplotlib' not in sys.modules"
    )
    arguments = files.command("tables", "imagenet1k", "--scale", "demo")[3:]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_columns_are_all_documented():
    text = TRACKING.read_text()
    assert [name for name in COLUMNS if f"`{name}`" not in text] == []
