"""The whole DAG for real, from nothing to tables, and one with a training that fails on the way.

At smoke scale: models and budgets are smaller than the demo's, code and DAG are the demo's. On a
SLURM: tests/cluster/dag.
"""

import csv
import json
import re
import shutil

import pytest

from smt.config.load import load_project
from tests.helpers.finished_project import (
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
"""A learning rate at which the first step is the last."""
EPOCHS, STEPS = 3, 36
"""Of the run that fails."""


# --- a failure on the way -------------------------------------------------------------------------


MENDED = pytest.mark.xdist_group("mended")  # what they share is made once


@pytest.fixture(scope="module")
def mended(tmp_path_factory):
    """A project after `snakemake all` with one failing experiment, its mending, and `all` again.

    They speak as `make reproduce` does.
    """
    project = Versioned(tmp_path_factory.mktemp("mended") / "project")
    shrink(project.folder / "params", (T, CHILD))
    project.change("scales.yaml", _give_time_to_fail)
    project.set_rate("imagenet22k", RUNAWAY)
    broken = project.snakemake("all", "--logger", "runs")
    partial = project.smt("sync"), project.smt("tables")
    tables = {path.name: path.read_text() for path in _tables(project).iterdir()}
    project.set_rate("imagenet22k", 2e-3)
    return broken, partial, tables, project.snakemake("all", "--logger", "runs")


def _give_time_to_fail(scales):
    scales[SCALE]["recipes"]["imagenet22k"]["schedule"] = {"epochs": EPOCHS}


def _tables(project):
    return project.folder / RESULTS / "tables"


@MENDED
def test_a_failure_stops_only_what_starts_from_it(mended):
    broken, _, _, _ = mended
    assert broken.returncode != 0
    line = next(line for line in broken.stderr.splitlines() if line.startswith(f"smt: {PARENT}"))
    assert "failed: the loss is not finite" in line and "after 20 skipped steps" in line
    assert re.search(rf"at step \d+ of {STEPS}, learning rate \d\.\d+e\+", line)


@MENDED
def test_tables_of_a_partial_result_say_what_failed_and_what_is_not_started(mended):
    _, (sync, tables_command), tables, _ = mended
    assert sync.returncode == 0 and tables_command.returncode == 0, tables_command.stderr
    assert "not started" in tables["imagenet22k.md"]
    assert "not started" not in tables["imagenet1k.md"]
    assert "smoke scale: not comparable with the paper" in tables["imagenet1k.md"]


@MENDED
def test_after_a_repair_only_missing_runs_are_trained(mended):
    _, _, _, done = mended
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if re.match(r"\d/\d ", line)]
    number = r"top-1 \d+\.\d\d  \d+ s  (less than a minute|about \d+ min) left"
    first, second = lines
    assert re.fullmatch(rf"1/2  {PARENT} seed 0  {number}", first), done.stderr
    assert re.fullmatch(rf"2/2  {CHILD} seed 0  {number}", second), done.stderr


@MENDED
def test_a_run_that_fails_has_a_line_with_its_log(mended):
    broken, _, _, _ = mended
    (line,) = [each for each in broken.stderr.splitlines() if each.startswith("failed: ")]
    assert line == f"failed: {PARENT} seed 0; see {RESULTS}/logs/train/{PARENT}-seed0.log"
    assert "Traceback" not in broken.stderr and len(broken.stderr.splitlines()) < 15


# --- what is made ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory):
    """A copy of the finished project, with all that Snakemake knows of it."""
    project = finished.copied(tmp_path_factory.mktemp("made") / "project")
    yield project
    shutil.rmtree(project.folder)


def test_every_table_stands_in_every_format(made):
    assert_made(made, TABLES)


def assert_made(project, tables):
    names = (*tables, "sizes", "drift")
    for name in names:
        for suffix in (".md", ".csv", ".tex", ".html"):
            assert (_tables(project) / f"{name}{suffix}").stat().st_size > 100, name + suffix
    texts = [(_tables(project) / f"{name}.md").read_text() for name in names]
    assert not any("not started" in text for text in texts)


@pytest.mark.slow
def test_one_command_makes_every_experiment_and_every_table(tmp_path):
    """Typed as a user types it: nothing is left out, and nothing is begun as tests begin it."""
    project = Versioned(tmp_path / "project")
    known = load_project(project.folder / "params", SCALE)
    done = project.run(
        "snakemake", "--profile", "local", "all", "--config", f"scale={SCALE}",
        SMT_SEND="1", SMT_FORKSERVER="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert_made(project, known.tables)
    page = (project.folder / RESULTS / "report.html").read_text()
    assert f"{len(known.runs)} <small>of {len(known.runs)} done</small>" in page
    verified = project.smt("verify")
    assert verified.returncode == 0, verified.stdout
    for table, content in known.tables.items():
        for row in content.rows:
            told = project.smt("why", table, row.experiment)
            assert told.returncode == 0, told.stderr
            assert f"run {row.experiment}-seed0: " in told.stdout
    for command in ("status", "plan", "release", "report"):
        done = project.smt(command)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(project.folder)


@pytest.mark.parametrize(
    ("table", "metric", "count"),
    [("imagenet1k", "top1", 2), ("coco_mask_rcnn", "mask_ap", 1), ("ade20k", "miou_ms", 1)],
)
def test_every_number_of_a_table_is_that_of_its_runs(made, table, metric, count):
    with (_tables(made) / f"{table}.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert len(rows) == count
    runs = made.folder / RESULTS / "runs"
    for row in rows:
        said = [
            json.loads(path.read_text())
            for path in (runs / row["experiment"]).glob("seed*/metrics.json")
        ]
        mean = sum(each["metrics"][metric] for each in said) / len(said)
        assert float(row[f"{metric}_mean"]) == pytest.approx(mean, abs=1e-9)
        assert int(row["n"]) == len(said)
        assert all(each["fingerprint"][:12] in str(row) for each in said)


def test_a_second_start_has_no_jobs(made):
    again = made.snakemake("all")
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr


def test_tables_are_the_same_bytes_each_time(made):
    before = {path.name: path.read_bytes() for path in _tables(made).iterdir()}
    shutil.rmtree(_tables(made))
    assert made.smt("tables").returncode == 0
    assert {path.name: path.read_bytes() for path in _tables(made).iterdir()} == before


def test_the_report_is_there_and_the_same_bytes_each_time(made):
    page = made.folder / RESULTS / "report.html"
    before = page.read_text()
    assert f"{len(RUNS)} <small>of {len(RUNS)} done</small>" in before
    assert "Every run is done." in before
    assert 'href="tables/imagenet1k.csv"' in before
    assert before.count('src="data:image/jpeg;base64,') == len(DOWNSTREAM)
    page.unlink()
    assert made.smt("report").returncode == 0
    assert page.read_text() == before


def test_the_workflows_own_report_is_one_page_that_loads_nothing(finished, tmp_path):
    project = finished.copied(tmp_path / "project")
    done = project.snakemake("--report", "workflow.html", "all")
    assert done.returncode == 0, done.stderr
    page = (project.folder / "workflow.html").read_text()
    loaded = re.findall(
        r"""<(?:script|link|img)[^>]+(?:src|href)=["'](?!data:)([^"'#][^"']*)""", page
    )
    assert loaded == []
    assert "imagenet1k.html" in page
    shutil.rmtree(project.folder)
