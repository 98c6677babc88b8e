"""The whole DAG for real, from nothing to tables, with a training that fails on the way.

Models and budgets are cut down further than the demo's; data, code and DAG are the demo's.
"""

import csv
import json
import re

import pytest
import yaml
from project_copy import ProjectCopy

RUNAWAY = 1e30
"""A learning rate at which the first step is the last."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project after `snakemake all` with one failing experiment, its mending, and `all` again."""
    project = ProjectCopy(tmp_path_factory.mktemp("reproduce") / "project")
    _shrink(project)
    _set_22k_rate(project, RUNAWAY)
    broken = project.snakemake("all")
    partial = project.smt("sync"), project.smt("tables")
    tables = {path.name: path.read_text() for path in _tables(project).iterdir()}
    _set_22k_rate(project, 2e-3)
    mended = project.snakemake("all")
    return project, broken, partial, tables, mended


def _edit_demo(project, change):
    path = project.folder / "params" / "scales.yaml"
    scales = yaml.safe_load(path.read_text())
    change(scales["demo"])
    path.write_text(yaml.safe_dump(scales, sort_keys=False))


def _shrink(project):
    def change(demo):
        demo["models"]["smt_tiny"].update(widths=[8, 16, 32, 64], msa_heads=[1, 2, 4, 8])
        demo["models"]["smt_large"].update(widths=[8, 16, 32, 64], depths=[1, 1, 2, 1])
        for recipe in demo["recipes"].values():
            recipe.setdefault("schedule", {}).update(epochs=1, warmup_epochs=0)

    _edit_demo(project, change)


def _set_22k_rate(project, rate):
    _edit_demo(project, lambda demo: demo["recipes"]["imagenet22k"]["optimizer"].update(lr=rate))


def _tables(project):
    return project.folder / "results" / "demo" / "tables"


def test_a_failure_stops_only_what_starts_from_it(made):
    _, broken, _, _, _ = made
    assert broken.returncode != 0
    line = next(line for line in broken.stderr.splitlines() if line.startswith("smt: imagenet22k"))
    assert "failed: the loss is not finite" in line and "after 20 skipped steps" in line
    assert re.search(r"at step \d+ of 93, learning rate \d\.\d+e\+29", line)


def test_tables_of_a_partial_result_say_what_failed_and_what_is_pending(made):
    _, _, (sync, tables_command), tables, _ = made
    assert sync.returncode == 0 and tables_command.returncode == 0, tables_command.stderr
    assert "pending" in tables["imagenet22k.md"]
    assert "pending" not in tables["imagenet1k.md"]
    assert "demo scale: not comparable with the paper" in tables["imagenet1k.md"]


def test_after_mending_only_what_was_missing_is_trained(made):
    _, _, _, _, mended = made
    assert mended.returncode == 0, mended.stderr
    trained = set(re.findall(r"Train (\w+), seed", mended.stdout + mended.stderr))
    assert trained == {
        "imagenet22k_smt_large",
        "imagenet1k_smt_large_224",
        "imagenet1k_smt_large_384",
    }


def test_every_table_stands_in_every_format(made):
    project, _, _, _, _ = made
    names = ["imagenet1k", "imagenet22k", "ablation_components", "ablation_heads",
             "ablation_stacking", "ablation_aggregation", "sizes", "drift"]  # fmt: skip
    for name in names:
        for suffix in (".md", ".csv", ".tex", ".html"):
            assert (_tables(project) / f"{name}{suffix}").stat().st_size > 100, name + suffix
    assert not any("pending" in (_tables(project) / f"{n}.md").read_text() for n in names)


def test_every_number_of_a_table_is_that_of_its_runs(made):
    project, _, _, _, _ = made
    with (_tables(project) / "imagenet1k.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert len(rows) == 3
    runs = project.folder / "results/demo/runs"
    for row in rows:
        said = [
            json.loads(path.read_text())
            for path in (runs / row["experiment"]).glob("seed*/metrics.json")
        ]
        mean = sum(each["metrics"]["top1"] for each in said) / len(said)
        assert float(row["top1_mean"]) == pytest.approx(mean, abs=1e-9)
        assert int(row["n"]) == len(said)
        assert all(each["fingerprint"][:12] in str(row) for each in said)


def test_run_again_there_is_nothing_to_do(made):
    project, _, _, _, _ = made
    again = project.snakemake("all")
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr


def test_tables_are_the_same_bytes_each_time(made):
    project, _, _, _, _ = made
    before = {path.name: path.read_bytes() for path in _tables(project).iterdir()}
    assert project.smt("tables").returncode == 0
    assert {path.name: path.read_bytes() for path in _tables(project).iterdir()} == before


def test_the_report_is_one_page_that_loads_nothing(made):
    project, _, _, _, _ = made
    done = project.snakemake("--report", "report.html", "all")
    assert done.returncode == 0, done.stderr
    page = (project.folder / "report.html").read_text()
    loaded = re.findall(
        r"""<(?:script|link|img)[^>]+(?:src|href)=["'](?!data:)([^"'#][^"']*)""", page
    )
    assert loaded == []
    assert "imagenet1k.html" in page
