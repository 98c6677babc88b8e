"""The whole DAG for real, from data to tables, and one with a failing training.

At smoke scale: models and budgets are smaller than the demo's, code and DAG are the same. On SLURM:
tests/cluster/dag.
"""

import csv
import json
import re
import shutil

import pytest

from smt.config.load import load_project
from tests.helpers.finished_project import (
    BESIDE,
    CHILD,
    DOWNSTREAM,
    PARENT,
    RESULTS,
    RUNS,
    TABLES,
    T,
    shrink,
)
from tests.helpers.versioned import SCALE, Versioned

RUNAWAY = 1e31
"""A learning rate at which training diverges in the first step."""
EPOCHS, STEPS = 3, 36
"""Of the run that fails."""


# --- a failing training ---------------------------------------------------------------------------


FAILED_THEN_FIXED = pytest.mark.xdist_group("mended")  # what they share is made once


@pytest.fixture(scope="module")
def failed_then_fixed(tmp_path_factory):
    """`snakemake all` with a failing experiment, partial tables, and `all` again after the fix.

    With the logger plugin of `make reproduce`.
    """
    project = Versioned(tmp_path_factory.mktemp("mended") / "project")
    shrink(project.folder / "params", (T, CHILD))
    project.change("scales.yaml", _give_time_to_fail)
    project.set_rate("imagenet22k", RUNAWAY)
    failure = project.snakemake("all", "--logger", "runs")
    partial = project.smt("sync"), project.smt("tables")
    tables = {path.name: path.read_text() for path in _tables(project).iterdir()}
    project.set_rate("imagenet22k", 2e-3)
    return failure, partial, tables, project.snakemake("all", "--logger", "runs")


def _give_time_to_fail(scales):
    scales[SCALE]["recipes"]["imagenet22k"]["schedule"] = {"epochs": EPOCHS}


def _tables(project):
    return project.folder / RESULTS / "tables"


@FAILED_THEN_FIXED
def test_a_failure_stops_only_what_starts_from_it(failed_then_fixed):
    failure, _, _, _ = failed_then_fixed
    assert failure.returncode != 0
    line = next(line for line in failure.stderr.splitlines() if line.startswith(f"smt: {PARENT}"))
    assert "failed: the loss is not finite" in line and "after 20 skipped steps" in line
    assert re.search(rf"at step \d+ of {STEPS}, learning rate \d\.\d+e\+", line)


@FAILED_THEN_FIXED
def test_partial_tables_mark_runs_that_are_not_started(failed_then_fixed):
    _, (sync, tables_command), tables, _ = failed_then_fixed
    assert sync.returncode == 0 and tables_command.returncode == 0, tables_command.stderr
    assert "not started" in tables["imagenet22k.md"]
    assert "not started" not in tables["imagenet1k.md"]
    assert "smoke scale: not comparable with the paper" in tables["imagenet1k.md"]


@FAILED_THEN_FIXED
def test_after_the_fix_only_missing_runs_are_trained(failed_then_fixed):
    _, _, _, rerun = failed_then_fixed
    assert rerun.returncode == 0, rerun.stderr
    lines = [line for line in rerun.stderr.splitlines() if re.match(r"\d/\d ", line)]
    number = r"top-1 \d+\.\d\d  \d+ s  (less than a minute|about \d+ min) left"
    first, second = lines
    assert re.fullmatch(rf"1/2  {PARENT} seed 0  {number}", first), rerun.stderr
    assert re.fullmatch(rf"2/2  {CHILD} seed 0  {number}", second), rerun.stderr


@FAILED_THEN_FIXED
def test_a_failed_run_is_one_line_with_its_log(failed_then_fixed):
    failure, _, _, _ = failed_then_fixed
    (line,) = [text for text in failure.stderr.splitlines() if text.startswith("failed: ")]
    assert line == f"failed: {PARENT} seed 0; see {RESULTS}/logs/train/{PARENT}-seed0.log"
    assert "Traceback" not in failure.stderr and len(failure.stderr.splitlines()) < 15


# --- outputs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_copy(finished, tmp_path_factory):
    """A copy of the finished project, with Snakemake's metadata."""
    project = finished.copied(tmp_path_factory.mktemp("made") / "project")
    yield project
    shutil.rmtree(project.folder)


def test_every_table_exists_in_every_format(finished_copy):
    assert_tables(finished_copy, TABLES)


def assert_tables(project, tables):
    names = (*tables, *BESIDE)
    for name in names:
        for suffix in (".md", ".csv", ".tex", ".html"):
            assert (_tables(project) / f"{name}{suffix}").stat().st_size > 100, name + suffix
    texts = [(_tables(project) / f"{name}.md").read_text() for name in names]
    assert not any("not started" in text for text in texts)


@pytest.mark.slow
def test_one_command_makes_every_experiment_and_every_table(tmp_path):
    """As a user runs it: every experiment, in new processes instead of the tests' forks."""
    project = Versioned(tmp_path / "project")
    params = load_project(project.folder / "params", SCALE)
    result = project.run(
        "snakemake", "--profile", "local", "all", "--config", f"scale={SCALE}",
        SMT_SEND="1", SMT_FORKSERVER="",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert_tables(project, params.tables)
    page = (project.folder / RESULTS / "report.html").read_text()
    assert f"{len(params.runs)} <small>of {len(params.runs)} done</small>" in page
    verified = project.smt("verify")
    assert verified.returncode == 0, verified.stdout
    for table, content in params.tables.items():
        for row in content.rows:
            why = project.smt("why", table, row.experiment)
            assert why.returncode == 0, why.stderr
            assert f"run {row.experiment}-seed0: " in why.stdout
    for command in ("status", "plan", "release", "report"):
        result = project.smt(command)
        assert result.returncode == 0, result.stderr
    shutil.rmtree(project.folder)


@pytest.mark.parametrize(
    ("table", "metric", "count"),
    [("imagenet1k", "top1", 2), ("coco_mask_rcnn", "mask_ap", 1), ("ade20k", "miou_ms", 1)],
)
def test_table_numbers_equal_those_of_the_runs(finished_copy, table, metric, count):
    with (_tables(finished_copy) / f"{table}.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert len(rows) == count
    runs = finished_copy.folder / RESULTS / "runs"
    for row in rows:
        records = [
            json.loads(path.read_text())
            for path in (runs / row["experiment"]).glob("seed*/metrics.json")
        ]
        mean = sum(record["metrics"][metric] for record in records) / len(records)
        assert float(row[f"{metric}_mean"]) == pytest.approx(mean, abs=1e-9)
        assert int(row["n"]) == len(records)
        assert all(record["fingerprint"][:12] in str(row) for record in records)


def test_a_second_run_has_nothing_to_do(finished_copy):
    again = finished_copy.snakemake("all")
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr


def test_tables_are_the_same_bytes_each_time(finished_copy):
    before = {path.name: path.read_bytes() for path in _tables(finished_copy).iterdir()}
    shutil.rmtree(_tables(finished_copy))
    assert finished_copy.smt("tables").returncode == 0
    assert {path.name: path.read_bytes() for path in _tables(finished_copy).iterdir()} == before


def test_the_report_is_the_same_bytes_each_time(finished_copy):
    page = finished_copy.folder / RESULTS / "report.html"
    before = page.read_text()
    assert f"{len(RUNS)} <small>of {len(RUNS)} done</small>" in before
    assert "Every run is done." in before
    assert 'href="tables/imagenet1k.csv"' in before
    assert before.count('src="data:image/jpeg;base64,') == len(DOWNSTREAM)
    page.unlink()
    assert finished_copy.smt("report").returncode == 0
    assert page.read_text() == before


def test_snakemakes_report_is_one_self_contained_page(finished, tmp_path):
    project = finished.copied(tmp_path / "project")
    result = project.snakemake("--report", "workflow.html", "all")
    assert result.returncode == 0, result.stderr
    page = (project.folder / "workflow.html").read_text()
    loaded = re.findall(
        r"""<(?:script|link|img)[^>]+(?:src|href)=["'](?!data:)([^"'#][^"']*)""", page
    )
    assert loaded == []
    assert "imagenet1k.html" in page
    shutil.rmtree(project.folder)
