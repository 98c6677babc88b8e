"""Figures show what MLflow has, by epoch."""

import pytest

from smt.config.experiments import Run
from smt.report import figures, plots
from smt.report.collect import collect
from smt.report.plots import save_all
from smt.report.trajectory import epoch_means
from smt.tracking.client import Point
from smt.tracking.sync import sync
from tests.helpers.run_files import B, S, T

DETECTOR = "coco_mask_rcnn_1x_smt_small"


def results(files):
    sync(files.project, files.layout)
    return collect(files.project, files.layout)


def finish_detector(files, run, box_ap):
    """A detector's run that is done, with box AP in place of top-1."""
    work_dir = files.finish(run, box_ap)
    said = files.layout.metrics(run), files.layout.evaluation(run)
    for path in (work_dir / "journal.jsonl", *said):
        text = path.read_text().replace("top1", "box_ap").replace("top5", "box_ap50")
        path.write_text(text.replace('"classify"', '"detect"'))


def test_losses_are_averaged_over_whole_epochs():
    """Epochs of 5 steps, a record every 2 steps and at each epoch's end."""
    losses = {2: 1.0, 4: 3.0, 5: 8.0, 6: 9.0, 8: 2.0, 10: 2.0, 12: 7.0}
    points = [Point("train/loss", value, step, step) for step, value in losses.items()]
    first = (2 * 1.0 + 2 * 3.0 + 1 * 8.0) / 5
    second = (1 * 9.0 + 2 * 2.0 + 2 * 2.0) / 5
    assert epoch_means(points, 5) == {1.0: first, 2.0: second}


def test_curves_are_means_over_seeds_by_epoch(make_files):
    files = make_files(seeds=(0, 1))
    files.finish(Run(experiment=T, seed=0), 90.0, epochs=2)
    files.finish(Run(experiment=T, seed=1), 94.0, epochs=2)
    files.run(Run(experiment=S, seed=1), epochs=1)
    tiny, small, base, *_ = figures.curves(results(files), figures.CURVES)
    assert (tiny.label, tiny.seeds, small.seeds, base.seeds) == ("SMT-T on ImageNet-1K", 2, 1, 0)
    assert tiny.score.epochs == (1.0, 2.0)
    assert tiny.score.mean == (82.0, 92.0)
    assert tiny.score.std == pytest.approx((8**0.5, 8**0.5))
    assert tiny.loss.epochs == (1.0, 2.0)
    assert small.score.epochs == (1.0,)
    assert base.loss.epochs == ()


def test_curves_of_detectors_show_box_ap(files):
    finish_detector(files, Run(experiment=DETECTOR, seed=0), 40.0)
    found = results(files)
    name = f"{figures.CURVES}_coco_mask_rcnn"
    first, *others = figures.curves(found, name)
    assert (first.label, first.metric) == ("SMT-S, 1x", "box_ap")
    assert first.score.mean == (30.0, 40.0)
    assert first.loss.epochs == (1.0, 2.0)
    assert [each.seeds for each in others] == [0, 0, 0]
    title = figures.titles(files.project)[name]
    labels = [axes.get_ylabel() for axes in plots.learning_curves(name, title, [first]).figure.axes]
    assert labels == ["training loss (mean of the epoch)", "validation box AP (%)"]
    text = next(path for path in save_all(found, files.layout, [name]) if path.suffix == ".svg")
    assert "validation box AP (%)" in text.read_text()


def test_classifiers_and_detectors_share_no_figure(files):
    project = files.project
    shown = {
        name: {project.experiments[each].task for each in figures.labelled(project, name)}
        for name in figures.titles(project)
        if figures.is_curves(name)
    }
    assert shown[figures.CURVES] == {"classify"}
    assert shown[f"{figures.CURVES}_coco_detectors"] == {"detect"}
    assert shown[f"{figures.CURVES}_ade20k"] == {"segment"}


def test_accuracy_is_set_against_the_macs_at_the_resolution_trained_at(files):
    files.finish(Run(experiment=T, seed=0), 96.0)
    files.finish(Run(experiment="imagenet22k_smt_large", seed=0), 60.0)
    files.write_sizes()
    (marker,) = figures.markers(results(files))
    assert (marker.label, marker.gmacs, marker.top1) == ("SMT-T on ImageNet-1K", 2.399, 96.0)
    assert marker.reported is None  # the paper's number is of another model and data set


def test_a_cross_stands_for_a_number_that_is_published_and_not_for_a_derived_one(make_files):
    files = make_files(scale="paper", seeds=(0,))
    for name in (T, "ablation_stage3_msa"):
        files.finish(Run(experiment=name, seed=0), 82.0, epochs=1)
    files.write_sizes()
    found = {each.label: each for each in figures.markers(results(files))}
    assert found["SMT-T on ImageNet-1K"].reported == 82.2
    assert found["Stage 3 all MSA"].reported is None


def test_the_same_numbers_make_the_same_bytes(files):
    for name in (T, S, B):
        files.finish(Run(experiment=name, seed=0))
    files.write_sizes()
    names = [figures.CURVES, figures.ACCURACY, figures.AGREEMENT]
    first = {path: path.read_bytes() for path in save_all(results(files), files.layout, names)}
    again = {path: path.read_bytes() for path in save_all(results(files), files.layout, names)}
    assert first == again
    assert {path.name for path in first} == {
        f"{name}.{suffix}" for name in names for suffix in ("svg", "png")
    }


def test_figures_are_plotted_before_any_run_with_a_notice(files):
    costs = next(name for name in figures.titles(files.project) if figures.is_cost(name))
    names = [figures.CURVES, figures.ACCURACY, figures.AGREEMENT, costs]
    paths = save_all(results(files), files.layout, names)
    assert [path.stem for path in paths[::2]] == names
    for path in paths:
        if path.suffix == ".svg":
            text = path.read_text()  # matplotlib leaves the text of each label in a comment
            assert files.project.scale.notice in text
            assert ("No run" in text) != figures.is_cost(path.stem)


def test_ablations_have_curves_of_their_own(files):
    shown = {
        name: list(figures.labelled(files.project, name).values())
        for name in figures.titles(files.project)
        if figures.is_curves(name)
    }
    assert shown["learning_curves_ablation_heads"] == ["1", "2", "4 (SMT-T)", "6", "8"]
    assert "learning_curves_imagenet1k" not in shown


def test_the_command_plots_the_named_figures(files):
    done = files.smt("figures", "accuracy_vs_macs", "--scale", "demo")
    assert str(files.layout.figures) in done.stdout
    plotted = sorted(path.name for path in files.layout.figures.iterdir())
    assert plotted == ["accuracy_vs_macs.png", "accuracy_vs_macs.svg"]
    wrong = files.smt("figures", "accuracy", check=False)
    assert wrong.returncode == 2
    assert "no figure 'accuracy'; did you mean accuracy_vs_macs?" in wrong.stderr


@pytest.mark.parametrize("costs", [(934.0, 1188.0), (258.0, 838.0), (2.0, 24.0), (0.5, 3000.0)])
def test_an_axis_of_costs_has_several_ticks_whatever_its_range(costs):
    models = [figures.PublishedModel(f"model {cost}", False, 80.0, cost, False) for cost in costs]
    plot = plots.cost("cost", "Cost", models, "Top-1 (%)")
    (axes,) = plot.figure.axes
    low, high = axes.get_xlim()
    assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 3
