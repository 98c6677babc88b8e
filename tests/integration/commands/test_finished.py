"""A project in which every run is done, of every task: what the commands say of it."""

import csv
import io
import json

import pytest

from smt.config.metrics import HEADLINES
from smt.runs.journal import best_evaluation
from smt.verify import tensors
from tests.helpers.finished_project import (
    CLASSIFIERS,
    DOWNSTREAM,
    RESULTS,
    RUNS,
    SEGMENTER,
    copy,
    load,
    run_dir,
)


def output(project, *arguments):
    done = project.smt(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def changeable(finished, tmp_path_factory):
    """A copy, for commands that write."""
    return copy(finished, tmp_path_factory.mktemp("commands") / "project")


def test_verify_reports_no_mismatch(finished):
    lines = output(finished, "verify").splitlines()
    assert lines[-1].startswith("everything is consistent: ")
    assert any(f"{len(RUNS)} runs that are done" in line for line in lines)


@pytest.mark.parametrize("experiment", [*CLASSIFIERS, *DOWNSTREAM])
def test_verify_reports_no_mismatch_of_any_single_experiment(finished, experiment):
    seeds = sum(name == experiment for name, _ in RUNS)
    lines = output(finished, "verify", "--experiment", experiment).splitlines()
    assert lines[-1].startswith("everything is consistent: ")
    assert any(f"{seeds} runs that are done" in line for line in lines)


def test_status_shows_every_run_as_done_with_its_result(finished):
    status = json.loads(output(finished, "status", "--json"))
    assert {(run["experiment"], run["seed"]) for run in status["runs"]} == RUNS
    for run in status["runs"]:
        final = json.loads((run_dir(finished, run["experiment"], run["seed"]) / "metrics.json")
                           .read_text())  # fmt: skip
        assert run["state"] == "done" and run["metrics"] == final["metrics"]
        assert (run["step"], run["epochs"]) == (final["steps"], final["epochs"])
    text = output(finished, "status")
    assert f"{len(RUNS)} runs: {len(RUNS)} done, 0 to go" in text


@pytest.mark.parametrize(("experiment", "seed"), sorted(RUNS))
def test_the_best_evaluation_is_that_of_the_trainings_own_state(finished, experiment, seed):
    (folder,) = run_dir(finished, experiment, seed).glob("work-*")
    newest = max((folder / "checkpoints").glob("step-*.safetensors"))
    facts, known = tensors.read(newest).facts, load(finished)
    headline = HEADLINES[known.experiments[experiment].task]
    best = best_evaluation(folder, headline)
    steps = best.epoch * known.steps_per_epoch(experiment)
    assert (best.metrics[headline], steps) == (facts["best"], facts["best_step"])


def test_plan_has_nothing_to_do(finished):
    rows = list(csv.DictReader(io.StringIO(output(finished, "plan", "--csv"))))
    experiments = {row["experiment"]: row for row in rows if row["experiment"]}
    known = load(finished)
    assert experiments.keys() >= {name for name, _ in RUNS}
    for name in known.order:
        assert float(experiments[name]["gpu_hours_to_do"]) == 0, experiments[name]
    assert experiments[SEGMENTER]["epochs"] == "2"  # 8 steps in intervals of 4


def test_report_shows_every_run_and_every_row(changeable):
    assert f"{len(RUNS)} runs: {len(RUNS)} done." in output(changeable, "report")
    page = (changeable.folder / RESULTS / "report.html").read_text()
    known = load(changeable)
    for table in known.tables.values():
        assert all(row.label in page for row in table.rows)
    for name in known.order:
        assert f"{name}-seed0" in page


def test_release_takes_every_classifier(changeable):
    lines = output(changeable, "release").splitlines()
    released = {line.split(":")[0].split(".")[1] for line in lines if line.startswith("smt_")}
    assert released == set(CLASSIFIERS)


def test_a_segmenter_is_refused_by_release_in_one_line(changeable):
    done = changeable.smt("release", SEGMENTER)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "only classifiers are released, for timm loads no other models" in done.stderr
