"""Runs that are off track are said to be, early; nothing is stopped for it."""

import json
import math

import click
import pytest

from smt.config.experiments import Run
from smt.errors import UserError
from smt.report import status, status_text
from smt.report.build import grid
from smt.report.collect import collect
from smt.report.trajectory import Band, band_at, measured_bands
from smt.runs.journal import Journal, Position
from smt.tracking.sync import sync
from tests.helpers.run_files import PARENT, S, T

TINY, SECOND, THIRD = (Run(experiment=T, seed=seed) for seed in range(3))


@pytest.fixture
def paper(make_files):
    return make_files(scale="paper", seeds=(0, 1, 2))


def write(files, run, top1, loss=None):
    """Write a run's journal with the trainer's own class; `top1` and `loss` go by epoch."""
    steps = files.project.steps_per_epoch(run.experiment)
    journal = Journal(files.work_dir(run), Position())
    for epoch in sorted({*top1, *(loss or {})}):
        metrics = {"train/loss": loss[epoch] if loss else 3.0}
        if epoch in top1:
            metrics["eval/top1"] = top1[epoch]
        journal.append(epoch * steps, epoch, metrics, {"system/images_per_second": 800.0})
    journal.close()


def begin(files, run, top1, loss=None):
    files.begin(run)
    write(files, run, top1, loss)


def finish(files, run, top1, loss=None):
    files.finish(run, top1.get(300, 95.0), epochs=1, evaluate=False)
    write(files, run, top1, loss)


def warned(files):
    """Return what `smt status` says is off track, by run."""
    status_json = json.loads(status_text.as_json(status.collect(files.project, files.layout)))
    return {each["run"]: each["off_track"] for each in status_json["runs"] if each["off_track"]}


def two_are_done(files):
    finish(files, TINY, {29: 52.0, 30: 52.5, 31: 53.0, 300: 82.0})
    finish(files, SECOND, {29: 53.1, 30: 53.6, 31: 54.1, 300: 82.4})


# --- against seeds that are done -----------------------------------------------------------------


def test_a_run_well_below_the_seeds_that_are_done_is_off_track(paper):
    two_are_done(paper)
    begin(paper, THIRD, {29: 41.0, 30: 41.2})
    warning = warned(paper)[str(THIRD)]
    half = 3 * math.sqrt(2 * 0.55**2)  # standard deviation of two values 1.1 apart, n - 1
    assert warning["low"] == pytest.approx(53.05 - half)
    assert warning["high"] == pytest.approx(53.05 + half)
    assert (warning["metric"], warning["value"], warning["epoch"]) == ("top1", 41.2, 30)
    printed = click.unstyle(status_text.text(status.collect(paper.project, paper.layout), 200))
    assert (
        "off track: top-1 41.2 at epoch 30, reference 50.7 to 55.4 (2 seeds that are done)"
        in printed
    )
    assert "off track: 1 run, a warning only" in printed


@pytest.mark.parametrize(
    ("top1", "off"),
    [
        ({30: 41.2}, False),  # one alone may be chance
        ({29: 52.0, 30: 41.2}, False),
        ({29: 41.0, 30: 41.2, 31: 53.0}, False),  # it has come back
        ({29: 53.0, 30: 41.2, 31: 41.5}, True),
    ],
)
def test_the_last_two_evaluations_count(paper, top1, off):
    two_are_done(paper)
    begin(paper, THIRD, top1)
    assert (str(THIRD) in warned(paper)) is off


def test_a_run_within_the_band_or_above_it_is_not_mentioned(paper):
    two_are_done(paper)
    begin(paper, THIRD, {29: 60.0, 30: 60.0})
    assert warned(paper) == {}
    assert "off track" not in status_text.text(status.collect(paper.project, paper.layout))


def test_with_one_seed_done_and_no_reference_point_there_is_no_warning(paper):
    finish(paper, Run(experiment=S, seed=0), {29: 60.0, 30: 60.0, 300: 83.0})
    begin(paper, Run(experiment=S, seed=1), {29: 1.0, 30: 1.0})
    assert warned(paper) == {}


def test_seeds_of_other_params_are_no_reference(paper):
    two_are_done(paper)
    paper.change("recipes.yaml", 2e-3, "recipes", "imagenet1k", "optimizer", "lr")
    begin(paper, THIRD, {29: 41.0, 30: 41.2})
    assert warned(paper) == {}


def test_a_value_that_is_no_number_is_off_track(paper):
    two_are_done(paper)
    begin(paper, THIRD, {29: math.nan, 30: math.nan})
    assert str(THIRD) in warned(paper)


def test_a_run_without_validation_is_judged_by_its_training_loss(paper):
    paper.change("experiments.yaml", [0, 1, 2], "experiments", PARENT, "seeds")
    first, second, third = (Run(experiment=PARENT, seed=seed) for seed in range(3))
    for run, value in ((first, 4.0), (second, 4.02)):
        finish(paper, run, {}, {8: 5.0, 9: value, 10: value, 90: 2.0})
    begin(paper, third, {}, {8: 5.0, 9: 4.09, 10: 4.09})
    assert warned(paper) == {}
    write(paper, third, {}, {8: 5.0, 9: 4.2, 10: 4.2})
    warning = warned(paper)[str(third)]
    assert (warning["metric"], warning["value"]) == ("loss", pytest.approx(4.2))
    assert warning["high"] == pytest.approx(4.01 + 0.1)  # the floor: the two are 0.02 apart


def test_the_band_is_three_standard_deviations_or_the_floor(paper):
    rule = paper.project.trajectory
    near, far = {1.0: 50.0, 2.0: 60.0}, {1.0: 50.2, 2.0: 66.0, 3.0: 70.0}
    first, second = measured_bands([near, far], 10, "top1", rule)
    assert (first.at, second.at) == (0.1, 0.2)
    assert (first.low, first.high) == pytest.approx((48.1, 52.1))
    assert second.high - 63.0 == pytest.approx(3 * math.sqrt(18))


def test_a_damaged_journal_is_no_reference_and_stops_nothing(paper):
    two_are_done(paper)
    (paper.work_dir(TINY) / "journal.jsonl").write_text("{}\nnot JSON\n")
    begin(paper, THIRD, {29: 41.0, 30: 41.2})
    assert warned(paper) == {}


# --- against reference points of params ----------------------------------------------------------


def test_reference_points_count_from_where_they_are(paper):
    begin(paper, TINY, {38: 20.0, 39: 20.0, 40: 20.0})
    assert warned(paper) == {}  # but one of them comes before the authors' point
    write(paper, TINY, {40: 69.5, 41: 69.5})
    assert warned(paper) == {}
    write(paper, TINY, {40: 68.4, 41: 68.5})
    warning = warned(paper)[str(TINY)]
    assert (warning["low"], warning["high"]) == (69, 73)
    assert warning["source"] == "the authors on SMT-T at epoch 40 of 300"


def test_two_seeds_that_are_done_go_before_reference_points(paper):
    finish(paper, TINY, {40: 60.0, 41: 60.0, 300: 82.0})
    finish(paper, SECOND, {40: 61.0, 41: 61.0, 300: 82.0})
    begin(paper, THIRD, {40: 60.5, 41: 60.5})
    assert warned(paper) == {}


def test_reference_points_of_another_scale_do_not_count(make_files):
    files = make_files(scale="demo")
    begin(files, TINY, {3: 1.0, 4: 1.0})
    assert warned(files) == {}


def test_the_first_epochs_are_not_judged(paper):
    paper.change(
        "trajectory.yaml",
        [{"at": 0.01, "metric": "top1", "value": 50, "tolerance": 1, "source": "assumed"}],
        *("points", "paper", T),
    )
    begin(paper, TINY, {13: 1.0, 14: 1.0, 15: 1.0})
    assert warned(paper) == {}
    write(paper, TINY, {14: 1.0, 15: 1.0, 16: 1.0})
    assert warned(paper)[str(TINY)]["source"] == "assumed"


def test_bands_are_joined_by_straight_lines():
    bands = (Band(0.1, 40.0, 50.0, "one"), Band(0.3, 60.0, 80.0, "two"))
    assert band_at(bands, 0.05) is None
    assert band_at((), 0.5) is None
    assert band_at(bands, 0.1) == bands[0]
    middle = band_at(bands, 0.2)
    assert (middle.low, middle.high, middle.source) == (pytest.approx(50), pytest.approx(65), "one")
    assert band_at(bands, 0.9) == bands[1]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("points", "papr"), {}, "no scale 'papr'; did you mean paper"),
        (("points", "paper", "imagenet1k_smt_tin"), "points", "did you mean imagenet1k_smt_tiny"),
        (("points", "paper", T, 0, "source"), "blog", "no source 'blog' in reported.yaml"),
        (("points", "paper", T, 0, "at"), 1.5, "less than or equal to 1"),
        (("points", "paper", T), "twice", "a second point of top1"),
        (("floors", "top5"), 1.0, "unknown key"),
    ],
)
def test_a_mistake_in_params_is_named_with_file_and_key(paper, keys, value, message):
    point = {"at": 0.1333, "metric": "top1", "value": 71, "tolerance": 2, "source": "assumed"}
    value = {"points": [point], "twice": [point, point]}.get(value, value) if keys[-1] in (
        T, "imagenet1k_smt_tin"
    ) else value  # fmt: skip
    paper.change("trajectory.yaml", value, *keys)
    with pytest.raises(UserError, match=r"trajectory\.yaml:\d+: ") as caught:
        _ = paper.project
    assert message in str(caught.value)


def test_no_fingerprint_depends_on_trajectory_params(paper):
    before = paper.fingerprint(TINY)
    paper.change("trajectory.yaml", 5, "spreads")
    assert paper.fingerprint(TINY) == before


# --- where it is shown -------------------------------------------------------------------------


def test_tables_show_the_warning_in_the_cell_and_in_the_notes(paper):
    two_are_done(paper)
    begin(paper, THIRD, {29: 41.0, 30: 41.2})
    begin(paper, Run(experiment=S, seed=0), {29: 41.0, 30: 41.2})
    sync(paper.project, paper.layout)
    text = "off track: top-1 41.2 at epoch 30, reference 50.7 to 55.4 (2 seeds that are done)"
    table = grid(collect(paper.project, paper.layout), "imagenet1k")
    assert any(f"{THIRD}: stopped" in note and text in note for note in table.notes)

    for run in (TINY, SECOND):
        paper.layout.metrics(run).unlink()
    paper.change(
        "trajectory.yaml",
        [{"at": 0.09, "metric": "top1", "value": 53, "tolerance": 1, "source": "assumed"}],
        *("points", "paper", T),
    )
    begin(paper, TINY, {29: 41.0, 30: 41.2})
    table = grid(collect(paper.project, paper.layout), "imagenet1k")
    cells = {
        column.title: cell.text for column, cell in zip(table.columns, table.rows[0], strict=True)
    }
    warning = "stopped, off track: top-1 41.2 at epoch 30, reference 52.0 to 54.0 (assumed)"
    assert warning in cells["reproduced"]
