"""Tables: what was reported, what came out, and how the rest stands."""

import csv
import shutil
import subprocess
import sys

import pytest

from smt.config.experiments import Run
from smt.errors import UserError
from smt.report.build import build, grid, table_names
from smt.report.collect import collect
from smt.report.render import latex_text, markdown_text, page
from smt.report.spread import pooled
from smt.report.tables import signed, source_mark
from smt.report.verdict import judge, summarise
from smt.runs.atomic import read_json, write_json
from smt.tracking.client import TrackingClient
from smt.tracking.sync import sync
from smt.verify.lineage import Lineage, find_row
from tests.helpers.debian import require
from tests.helpers.run_files import CHILD, PARENT, B, S, T, remote
from tests.integration.report.test_trajectory import finish

TINY = Run(experiment=T, seed=0)
MASK_RCNN = "coco_mask_rcnn_1x_smt_small"
LEARNING_RATE = ("demo", "recipes", "imagenet1k", "optimizer", "lr")


def results(files):
    return collect(files.project, files.layout)


def synced(files):
    sync(files.project, files.layout)
    return results(files)


def made(files, name):
    """Return the records of a table, made anew, by label."""
    build(results(files), files.layout, [name])
    with (files.layout.tables / f"{name}.csv").open() as file:
        return {
            row.get("label") or row["model"] + row["scale"]: row for row in csv.DictReader(file)
        }


@pytest.fixture
def paper(make_files):
    """Paper scale with three seeds: SMT-T done, SMT-S in parts, SMT-B not started."""
    files = make_files(scale="paper", seeds=(0, 1, 2))
    for seed, top1 in enumerate((82.0, 82.2, 82.4)):
        files.finish(Run(experiment=T, seed=seed), top1, epochs=1)
    files.finish(Run(experiment=S, seed=0), 83.0, epochs=1)
    files.fail(Run(experiment=S, seed=1), "the loss is not finite at step 7 <b>&_%#</b>")
    files.run(Run(experiment=S, seed=2), epochs=1)
    sync(files.project, files.layout)
    return files


# --- numbers and verdicts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "reported", "verdict"),
    [
        ([82.2], 82.2, "reproduced"),
        ([82.0], 82.2, "reproduced"),  # 82.2 - 82.0 is a little over 0.2 in binary
        ([82.4], 82.2, "reproduced"),
        ([81.9], 82.2, "no verdict"),
        ([82.5], 82.2, "no verdict"),
        ([81.7, 82.1], 82.2, "within noise"),  # 0.3 below, interval 12.706 x 0.283 x 1.225 = 4.4
        ([81.8, 81.82], 82.2, "below"),  # 0.39 below, interval 0.22
        ([82.6, 82.62], 82.2, "above"),
        (
            [81.5, 81.7, 81.9],
            82.2,
            "within noise",
        ),  # 0.5 below, interval 4.303 x 0.2 x 1.155 = 0.99
        ([81.0, 81.2, 81.4], 82.2, "below"),  # 1.0 below
        ([82.2], None, "not reported"),
        ([], 82.2, "not run"),
        ([float("nan")], 82.2, "below"),
    ],
)
def test_verdicts(values, reported, verdict):
    summary, spread = summarise(values), pooled({"its own": values})
    assert judge(summary, reported, spread, tolerance=0.2, comparable=True) == verdict


@pytest.mark.parametrize(
    ("value", "verdict"), [(82.0, "reproduced"), (81.4, "within noise"), (80.9, "below")]
)
def test_a_single_seed_is_judged_by_the_seeds_of_others(value, verdict):
    spread = pooled({"others": [84.0, 84.2, 84.4]})  # interval 4.303 x 0.2 x 1.414 = 1.22
    assert judge(summarise([value]), 82.2, spread, tolerance=0.2, comparable=True) == verdict


def test_at_a_scale_with_a_notice_nothing_is_compared():
    summary = summarise([82.2])
    assert judge(summary, 82.2, None, tolerance=0.2, comparable=False) == "not comparable"


def test_a_run_that_was_not_trained_as_in_the_paper_has_a_note(paper):
    sentence = "not the paper's training: on 2 GPUs instead of 8, something of 4 images at once"
    assert not [note for note in grid(results(paper), "imagenet1k").notes if sentence in note]
    for seed in (0, 2):
        path = paper.layout.metrics(Run(experiment=T, seed=seed))
        write_json(path, read_json(path) | {"deviations": [sentence]})
    notes = grid(results(paper), "imagenet1k").notes
    (note,) = [note for note in notes if sentence in note]
    assert note == f"{T}-seed0; {T}-seed2: {sentence}."


def test_mean_and_std_over_the_seeds_that_are_done(paper):
    rows = made(paper, "imagenet1k")
    tiny = rows["SMT-T"]
    assert float(tiny["top1_mean"]) == pytest.approx(82.2)
    assert float(tiny["top1_std"]) == pytest.approx(0.2)
    assert float(tiny["top1_delta"]) == pytest.approx(0, abs=1e-9)
    assert (tiny["n"], tiny["top1_verdict"]) == ("3", "reproduced")
    assert tiny["top1_source"] == "release_readme"
    text = (paper.layout.tables / "imagenet1k.md").read_text()
    assert "82.20 ± 0.20" in text
    assert "82.2 \\[a\\]" in text


def cells(grid, label):
    """Return the cells of a row by heading."""
    row = next(row for row in grid.rows if row[0].text == label)
    return {column.full_title: cell.text for column, cell in zip(grid.columns, row, strict=True)}


def test_intervals_are_pooled_over_the_recipe_and_a_single_seed_is_marked(paper):
    rows = made(paper, "imagenet1k")
    # SMT-T: 82.0, 82.2, 82.4, so s = 0.2 of 2 degrees of freedom, whose t is 4.302653.
    tiny, small, base = (rows[name] for name in ("SMT-T", "SMT-S", "SMT-B"))
    for row in (tiny, small):
        assert float(row["top1_pooled_std"]) == pytest.approx(0.2)
        assert row["top1_pooled_df"] == "2"
    assert float(tiny["top1_interval"]) == pytest.approx(4.302653 * 0.2 * (4 / 3) ** 0.5, rel=1e-6)
    assert float(small["top1_interval"]) == pytest.approx(4.302653 * 0.2 * 2**0.5, rel=1e-6)
    assert tiny["top1_interval_of"] == "its own seeds"
    assert small["top1_interval_of"] == "1 other experiment"
    assert (base["top1_interval"], base["top1_interval_of"]) == ("", "")
    shown = grid(results(paper), "imagenet1k")
    assert cells(shown, "SMT-T")["Top-1 (%) 95 % interval"] == "± 0.99"
    assert cells(shown, "SMT-S")["Top-1 (%) 95 % interval"] == "± 1.22 *"
    assert cells(shown, "SMT-B")["Top-1 (%) 95 % interval"] == ""
    notes = "\n".join(shown.notes)
    assert "imagenet1k, top-1: s = 0.200, degrees of freedom: 2, experiments: 1" in notes
    assert "* A single seed, whose s comes from other experiments alone: SMT-S." in notes
    assert "95 in 100 lie in it" in notes and "at most 5 in 100 get this verdict" in notes
    assert "No interval" not in notes
    text = (paper.layout.tables / "imagenet1k.md").read_text()
    assert "| ± 1.22 \\* |" in text


def test_seeds_of_a_recipe_are_pooled_whichever_table_they_stand_in(paper):
    for seed, top1 in enumerate((80.0, 80.6)):
        paper.finish(Run(experiment="ablation_heads_1", seed=seed), top1, epochs=1)
    sync(paper.project, paper.layout)
    tiny = made(paper, "imagenet1k")["SMT-T"]
    assert tiny["top1_pooled_df"] == "3"
    assert float(tiny["top1_pooled_std"]) == pytest.approx(((2 * 0.04 + 0.18) / 3) ** 0.5)
    assert tiny["top1_interval_of"] == "this and 1 more"
    assert made(paper, "ablation_heads")["1"]["top1_pooled_df"] == "3"


def test_where_every_experiment_has_one_seed_a_note_explains_that_no_verdict_is_possible(
    make_files,
):
    files = make_files(scale="paper", seeds=(0,))
    for name, top1 in ((T, 82.1), (S, 81.0)):
        files.finish(Run(experiment=name, seed=0), top1, epochs=1)
    sync(files.project, files.layout)
    rows = made(files, "imagenet1k")
    assert (rows["SMT-T"]["top1_verdict"], rows["SMT-S"]["top1_verdict"]) == (
        "reproduced", "no verdict"
    )  # fmt: skip
    assert rows["SMT-S"]["top1_interval"] == rows["SMT-S"]["top1_pooled_df"] == ""
    shown = grid(results(files), "imagenet1k")
    assert cells(shown, "SMT-S")["Top-1 (%) 95 % interval"] == "unknown"
    (note,) = (note for note in shown.notes if note.startswith("No interval: SMT-T; SMT-S."))
    assert "No experiment of the recipe (imagenet1k) has two seeds that are done" in note
    assert "no verdict is possible" in note and "`seeds` in params/experiments.yaml" in note


def test_at_a_scale_that_is_not_compared_there_are_neither_verdicts_nor_intervals(files):
    files.finish(TINY, 96.0)
    sync(files.project, files.layout)
    shown = grid(results(files), "imagenet1k")
    assert not any("interval" in column.title for column in shown.columns)
    none = "Verdict: none, because results at this scale cannot be compared"
    assert sum(note.startswith(none) for note in shown.notes) == 1
    assert not any("in 100" in note for note in shown.notes)


def test_at_a_scale_that_is_not_compared_a_csv_has_no_intervals_of_several_seeds(make_files):
    """A table of such a scale rests on its own rows alone, whatever else is done."""
    files = make_files(seeds=(0, 1))
    for seed in (0, 1):
        files.finish(Run(experiment=T, seed=seed), 96.0 + seed)
    sync(files.project, files.layout)
    row = made(files, "imagenet1k")["SMT-T"]
    assert float(row["top1_std"]) == pytest.approx(0.5**0.5)
    keys = ("top1_interval", "top1_interval_of", "top1_pooled_std", "top1_pooled_df")
    assert [row[key] for key in keys] == ["", "", "", ""]


def test_each_cell_leads_to_its_run(paper):
    row = made(paper, "imagenet1k")["SMT-T"]
    runs = [Run(experiment=T, seed=seed) for seed in range(3)]
    ids = [remote(paper, run).run_id for run in runs]
    assert row["run_ids"] == "; ".join(ids)
    assert row["fingerprints"] == "; ".join(paper.fingerprint(run) for run in runs)
    for suffix in ("md", "html", "tex"):
        text = (paper.layout.tables / f"imagenet1k.{suffix}").read_text()
        assert all(f"{run_id}" in text for run_id in ids)


def test_a_table_of_unfinished_runs_shows_their_states(paper):
    rows = made(paper, "imagenet1k")
    small, base = rows["SMT-S"], rows["SMT-B"]
    assert (small["n"], small["states"]) == ("1", "done; failed; stopped")
    assert float(small["top1_mean"]) == 83.0
    assert small["top1_verdict"] == "within noise"  # by the seeds of SMT-T
    assert small["reasons"].startswith("the loss is not finite at step 7")
    assert "1 of 300 epochs" in small["reasons"]
    assert (base["n"], base["top1_mean"], base["top1_verdict"]) == ("0", "", "not run")
    assert base["states"] == "not started; not started; not started"
    text = (paper.layout.tables / "imagenet1k.md").read_text()
    assert f"{S}-seed1: failed: the loss is not finite at step 7" in text
    assert "| 1 of 3 |" in text
    assert f"{B}-seed0, {B}-seed1, {B}-seed2, imagenet1k_smt_large-seed0: not started" in text
    assert "Rows of one seed have none: SMT-S." in text


def test_a_run_whose_parent_failed_names_it(files):
    files.fail(Run(experiment=PARENT, seed=0), "no space left")
    child = synced(files).of(CHILD)[0]
    assert child.state == "not started"
    assert child.reason == f"waits for {PARENT}-seed0, which has failed"


def test_a_run_of_other_params_is_outdated(files):
    files.finish(TINY)
    sync(files.project, files.layout)
    files.change("scales.yaml", 3e-3, *LEARNING_RATE)
    (tiny,) = results(files).of(T)
    assert (tiny.state, tiny.metrics) == ("outdated", {})
    assert "outdated" in (row := made(files, "imagenet1k")["SMT-T"])["states"]
    assert row["top1_mean"] == ""


def test_other_data_make_a_run_outdated(files):
    files.finish(TINY)
    sync(files.project, files.layout)
    files.manifests(content="other")
    assert results(files).of(T)[0].state == "outdated"


def test_without_a_manifest_a_run_has_no_numbers_and_names_the_command(files):
    files.finish(TINY)
    sync(files.project, files.layout)
    files.layout.manifest("imagenet1k").unlink()
    (tiny,) = results(files).of(T)
    assert (tiny.state, tiny.metrics) == ("done", {})
    assert "no telling of which data" in tiny.reason
    assert "smt data manifest imagenet1k" in tiny.reason


def test_a_run_that_is_not_in_mlflow_yet_is_marked(files):
    files.finish(TINY)
    (tiny,) = results(files).of(T)
    assert (tiny.state, tiny.lack, tiny.metrics) == ("done", "not in MLflow", {})
    assert "smt sync --scale demo" in tiny.reason


def test_a_run_trained_elsewhere_counts_by_what_mlflow_has(files):
    files.finish(TINY, 96.0)
    sync(files.project, files.layout)
    shutil.rmtree(files.layout.run_dir(TINY))
    (tiny,) = results(files).of(T)
    assert (tiny.state, tiny.metrics["top1"]) == ("done", 96.0)


def test_gains_are_over_the_baseline(make_files):
    files = make_files(scale="paper", seeds=(0,))
    for experiment, top1 in (("ablation_ladder_baseline", 80.5), ("ablation_ladder_mhmc", 81.0)):
        files.finish(Run(experiment=experiment, seed=0), top1, epochs=1)
    sync(files.project, files.layout)
    rows = made(files, "ablation_components")
    assert (rows["baseline"]["top1_gain"], rows["+ MHMC"]["top1_gain"]) == ("0.0", "0.5")
    assert rows["+ MHMC"]["top1_gain_reported"] == "0.8"
    assert (rows["+ SAA"]["top1_gain"], rows["+ SAA"]["top1_gain_reported"]) == ("", "1.6")
    assert made(files, "ablation_heads")["1"]["top1_reported"] == ""


def test_a_derived_number_is_marked_and_stands_in_the_table_it_is_for_alone(make_files):
    files = make_files(scale="paper", seeds=(0,))
    for experiment, top1 in ((T, 82.2), ("ablation_stage3_msa", 81.5)):
        files.finish(Run(experiment=experiment, seed=0), top1, epochs=1)
    sync(files.project, files.layout)
    rung = made(files, "ablation_components")["+ SAA"]
    assert (rung["top1_reported"], rung["top1_source"]) == ("81.6", "summary_derived")
    assert (rung["top1_reported_kind"], rung["top1_verdict"]) == ("derived", "reproduced")
    text = (files.layout.tables / "ablation_components.md").read_text()
    assert "| \\+ SAA | 81.6 derived \\[a\\] |" in text and "Derived: computed here" in text
    assert made(files, "ablation_components")["+ EHN (SMT-T)"]["top1_reported_kind"] == "published"
    row = made(files, "ablation_stacking")["all MSA"]
    assert float(row["top1_mean"]) == 81.5
    for key in ("reported", "reported_kind", "source", "delta", "gain_reported"):
        assert row[f"top1_{key}"] == "", key
    assert row["top1_verdict"] == "not reported"
    stacking = (files.layout.tables / "ablation_stacking.md").read_text()
    assert "81.6" not in stacking and "derived" not in stacking.lower()


def test_why_and_table_agree_on_a_derived_number(make_files):
    files = make_files(scale="paper", seeds=(0,))
    lineage = Lineage(files.project, files.layout)
    told = {
        table: lineage.row(table, find_row(files.project, table, "ablation_stage3_msa"))
        for table in ("ablation_components", "ablation_stacking")
    }
    text = {table: "\n".join(node.lines()) for table, node in told.items()}
    assert "Top-1 (%): not run; derived 81.6 (published summary" in text["ablation_components"]
    assert "Top-1 (%): not run; not reported" in text["ablation_stacking"]


BEST = "Top-1 (%) best epoch"


@pytest.fixture
def evaluated(make_files):
    """Paper scale with two seeds of SMT-T, whose last epoch is not their best."""
    files = make_files(scale="paper", seeds=(0, 1))
    for seed, top1 in enumerate(({29: 82.3, 30: 82.9, 300: 82.0}, {29: 82.5, 30: 82.0, 300: 82.2})):
        finish(files, Run(experiment=T, seed=seed), top1)
    sync(files.project, files.layout)
    return files


def test_the_best_epoch_stands_beside_the_last_which_is_judged(evaluated):
    row = made(evaluated, "imagenet1k")["SMT-T"]
    assert float(row["top1_mean"]) == pytest.approx(82.1)
    assert float(row["top1_best"]) == pytest.approx((82.9 + 82.5) / 2)
    assert row["top1_best_epochs"] == "30; 29"
    assert float(row["top1_delta"]) == pytest.approx(-0.1)
    shown = grid(results(evaluated), "imagenet1k")
    assert cells(shown, "SMT-T")[BEST] == "82.70"
    assert not any("Top-5" in column.group and "best" in column.title for column in shown.columns)
    (note,) = (note for note in shown.notes if note.startswith("Best epoch: "))
    assert "the highest top-1 that any evaluation gave" in note
    assert "delta and verdict are of the last" in note


def test_without_the_journals_of_all_seeds_there_is_no_best_epoch(evaluated):
    """A run that was trained elsewhere has its numbers in MLflow, and no journal here."""
    shutil.rmtree(evaluated.layout.run_dir(Run(experiment=T, seed=1)))
    row = made(evaluated, "imagenet1k")["SMT-T"]
    assert (row["n"], row["top1_best"], row["top1_best_epochs"]) == ("2", "", "")
    assert cells(grid(results(evaluated), "imagenet1k"), "SMT-T")[BEST] == ""


def test_a_run_that_was_evaluated_once_has_no_best_epoch(make_files):
    files = make_files(scale="paper", seeds=(0,))
    finish(files, TINY, {300: 82.0})
    sync(files.project, files.layout)
    assert made(files, "imagenet1k")["SMT-T"]["top1_best"] == ""


def test_a_damaged_journal_removes_the_best_epoch_alone(evaluated):
    path = evaluated.work_dir(TINY) / "journal.jsonl"
    path.write_text(path.read_text().replace('"epoch":30,', '"epoch":30,,'))
    row = made(evaluated, "imagenet1k")["SMT-T"]
    assert float(row["top1_mean"]) == pytest.approx(82.1) and row["top1_best"] == ""


def test_the_best_epoch_of_detectors_and_segmenters_is_by_their_own_metric(files):
    titles = {
        table: [column.full_title for column in grid(results(files), table).columns]
        for table in ("coco_mask_rcnn", "ade20k")
    }
    best = {table: [each for each in every if "best" in each] for table, every in titles.items()}
    assert best == {"coco_mask_rcnn": ["Box AP (%) best epoch"], "ade20k": ["mIoU (%) best epoch"]}


# --- AP by IoU and by size ----------------------------------------------------------------------


def test_ap_by_iou_and_size_stands_in_a_table_of_its_own_and_its_csv_has_verdicts(make_files):
    files = make_files(scale="paper")
    files.finish(Run(experiment=MASK_RCNN, seed=0), 47.6, epochs=1)
    detail = grid(synced(files), "coco_mask_rcnn_detail")
    shown = cells(detail, "SMT-S, 1x")
    published = {"AP50": ("69.5", "66.6"), "AP75": ("52.1", "46.1")}
    for name, values in published.items():
        for kind, value in zip(("Box", "Mask"), values, strict=True):
            assert shown[f"{kind} {name} (%) reported"].split()[0] == value
            assert shown[f"{kind} {name} (%) reproduced"] == "73.8"
    for size in ("small", "medium", "large"):
        assert shown[f"Box AP {size} (%) reproduced"] == "73.8"
        assert f"Box AP {size} (%) reported" not in shown  # no table at hand prints any
    assert len(detail.columns) == 1 + 4 * 2 + 6 + 2
    row = made(files, "coco_mask_rcnn_detail")["SMT-S, 1x"]
    assert float(row["box_ap75_delta"]) == pytest.approx(73.8 - 52.1)
    assert row["box_ap75_verdict"] == "no verdict"
    assert row["box_ap_small_verdict"] == "not reported"


def test_a_metric_that_a_finished_run_lacks_is_missing_with_the_reason(files):
    run = Run(experiment=MASK_RCNN, seed=0)
    files.finish(run, 47.6, epochs=1)
    for path in (files.layout.metrics(run), files.layout.evaluation(run)):
        document = read_json(path)
        for name in ("box_ap75", "mask_ap_large"):
            del document["metrics"][name]
        write_json(path, document)
    detail = grid(synced(files), "coco_mask_rcnn_detail")
    shown = cells(detail, "SMT-S, 1x")
    assert shown["Box AP75 (%) reproduced"] == shown["Mask AP large (%) reproduced"]
    assert shown["Box AP75 (%) reproduced"] == "not measured"
    assert shown["Box AP small (%) reproduced"] == "73.8"
    (note,) = [note for note in detail.notes if note.startswith("Not measured")]
    assert f"box AP75; mask AP large of {run}: metrics.json of these runs" in note
    assert "undefined where no object to detect has it" in note


# --- the cross-check ---------------------------------------------------------------------------


def test_a_number_that_differs_from_mlflow_names_both(files):
    files.finish(TINY, 96.0)
    sync(files.project, files.layout)
    path = files.layout.metrics(TINY)
    known = read_json(path)
    known["metrics"]["top1"] = 97.25
    write_json(path, known)
    with pytest.raises(UserError) as caught:
        results(files)
    message = str(caught.value)
    for part in (str(path), "97.25", "96.0", remote(files, TINY).run_id, "top1"):
        assert part in message
    assert "\n" not in message


def test_a_number_changed_in_mlflow_names_both(files):
    files.finish(TINY, 96.0)
    sync(files.project, files.layout)
    run = remote(files, TINY)
    TrackingClient.from_layout(files.layout).log_batch(
        run.run_id, [("final/top1", 99.0, 2_000_000_000_000, 9999)]
    )
    with pytest.raises(UserError, match=f"top1 = 96.0.*{run.run_id}.*99.0"):
        results(files)


def test_a_number_changed_in_both_is_found_by_the_journal(files):
    """A metrics.json that was changed and synced disagrees with the journal's last evaluation."""
    files.finish(TINY, 96.0, evaluate=False)
    known = read_json(files.layout.metrics(TINY))
    known["metrics"]["top1"] = 97.25
    write_json(files.layout.metrics(TINY), known)
    with pytest.raises(UserError, match=r"eval/top1 of MLflow run .* is 96.0"):
        synced(files)


def test_other_weights_than_mlflow_knows_are_an_error(files):
    files.finish(TINY)
    sync(files.project, files.layout)
    known = read_json(files.layout.metrics(TINY))
    write_json(files.layout.metrics(TINY), {**known, "weights_sha256": "cd" * 32})
    with pytest.raises(UserError, match=r"cdcdcd.*ababab"):
        results(files)


# --- formats -----------------------------------------------------------------------------------


def test_the_same_results_make_the_same_bytes(files):
    files.finish_all(epochs=1)
    files.write_sizes()
    everything = synced(files)
    first = {path: path.read_bytes() for path in build(everything, files.layout)}
    shutil.rmtree(files.layout.tables)
    again = {path: path.read_bytes() for path in build(results(files), files.layout)}
    assert first == again
    assert len(first) == 4 * len(table_names(files.project)) + 2


def test_the_notice_is_on_every_table_in_every_format(files):
    notice = files.project.scale.notice
    for path in build(results(files), files.layout):
        # Speeds are of the paper's models, at every scale.
        assert (notice in path.read_text()) is not path.stem.startswith("throughput"), path


def test_before_any_run_tables_are_there_and_no_database(files):
    (files.layout.results / "mlflow.db").unlink()
    paths = build(results(files), files.layout)
    pages = {path.stem: path.read_text() for path in paths if path.suffix == ".html"}
    del pages["claims"], pages["throughput"]  # at this scale no training decides any
    assert all("not started" in text for text in pages.values())
    assert not (files.layout.results / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 50 % of #1", r"a\_b \& 50 \% of \#1"),
        ("{x} ~ ^ \\ $", r"\{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} \$"),
        ("82.2 ± 0.1\nnext", r"82.2 $\pm$ 0.1 next"),
        ("smt --scale", "smt -{}-scale"),
        ("naïve → 雪", "naïve ? ?"),
    ],
)
def test_latex_escapes_text(text, expected):
    assert latex_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("+ MHMC", r"\+ MHMC"),
        ("smt_tiny, _so_", r"smt_tiny, \_so\_"),
        ("<b>[x](y)</b>\n*", r"\<b\>\[x\](y)\</b\> \*"),
    ],
)
def test_markdown_escapes_text(text, expected):
    assert markdown_text(text) == expected


def test_html_escapes_what_runs_and_params_say(paper):
    paper.change("tables.yaml", "<i>ImageNet</i>", "tables", "imagenet1k", "title")
    build(results(paper), paper.layout, ["imagenet1k", "index"])
    for name in ("imagenet1k", "index"):
        text = (paper.layout.tables / f"{name}.html").read_text()
        assert "&lt;b&gt;&amp;_%#&lt;/b&gt;" in text
        assert "&lt;i&gt;ImageNet&lt;/i&gt;" in text
        assert "<b>" not in text and "<i>" not in text


def test_a_table_alone_leaves_the_page_that_leads_to_all_of_them(files):
    """In the DAG that page is an output of another job, which finds it missing."""
    build(results(files), files.layout, ["imagenet1k"])
    assert not list(files.layout.tables.glob("index.*"))
    build(results(files), files.layout, ["index"])
    assert {path.name for path in files.layout.tables.glob("index.*")} == {"index.md", "index.html"}


def test_html_loads_nothing(files):
    for path in build(results(files), files.layout):
        if path.suffix == ".html":
            text = path.read_text()
            assert "<script" not in text and "<link" not in text and "@import" not in text


def test_a_template_with_an_unknown_value_is_an_error():
    with pytest.raises(Exception, match="undefined"):
        page("table.html.j2")


@pytest.mark.parametrize("packages", ["", ",hyperref"])
def test_every_table_compiles_as_latex(paper, tmp_path, packages):
    pdflatex = require("pdflatex")
    paper.write_sizes()
    paper.change("tables.yaml", "[a] * new", "tables", "ablation_heads", "rows", 1, "label")
    build(results(paper), paper.layout)
    names = table_names(paper.project)
    inputs = "\n".join(rf"\input{{{paper.layout.tables / name}.tex}}" for name in names)
    document = (
        rf"\documentclass{{article}}\usepackage{{booktabs,graphicx,array,longtable{packages}}}"
        rf"\begin{{document}}{inputs}\end{{document}}"
    )
    (tmp_path / "tables.tex").write_text(document)
    done = subprocess.run(
        [pdflatex, "-halt-on-error", "-interaction=nonstopmode", "tables.tex"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "tables.log").read_text(errors="replace")
    assert "Missing character" not in log
    captions = [line for line in (tmp_path / "tables.aux").read_text().splitlines()
                if "tab:" in line]  # fmt: skip
    assert len(captions) == len(names)


def test_differences_that_round_to_zero_have_no_sign():
    assert [signed(x, 2) for x in (0.004, -0.004, 0.005001, -1, None)] == [
        "0.00", "0.00", "+0.01", "-1.00", ""
    ]  # fmt: skip


def test_sources_are_lettered():
    assert [source_mark(index) for index in (0, 1, 25, 26, 27)] == ["a", "b", "z", "aa", "ab"]


# --- sizes and drift ---------------------------------------------------------------------------


def test_sizes_set_published_beside_measured(files):
    files.write_sizes()
    rows = made(files, "sizes")
    small = rows["smt_smallpaper"]
    assert (small["params"], small["params_m_published"]) == ("22550952", "20.5")
    text = (files.layout.tables / "sizes.md").read_text()
    assert "| SMT-S | paper | 22.550952 | 20.5 \\[a\\] | +2.051 | 224 |" in text
    assert "| 4.6569 | 4.8388 | 4.6890 | 4.7 \\[a\\] | -0.011 |" in text
    assert rows["smt_smalldemo"]["params_m_published"] == ""


def test_sizes_that_were_not_measured_are_not_started_and_name_the_command(files):
    rows = made(files, "sizes")
    assert rows["smt_tinypaper"]["state"] == "not started: run smt profile --scale paper"
    assert rows["smt_tinydemo"]["state"] == "not started: run smt profile --scale demo"


def test_discrepancies_are_filled_in_from_the_papers_models_at_any_scale(files):
    files.write_sizes()
    drift = grid(results(files), "drift")
    ours = {row[0].text: row[4].text for row in drift.rows}
    assert ours["SMT-S parameters"].startswith("22.551 M; depths 3 4 18 1")
    assert "2.380 G in convolutions" in ours["attention products in MACs"]
    assert not any("{" in text or "not started" in text for text in ours.values())


def test_differences_of_protocol_are_discrepancies(files):
    drift = grid(results(files), "drift")
    protocol = {row[0].text: row[3].text for row in drift.rows if row[1].text == "protocol"}
    assert "the highest top-1 of all epochs so far" in protocol["epoch that a result is of"]
    assert protocol["loading of pretrained weights"].startswith("never strict")


def test_discrepancies_wait_for_sizes(files):
    drift = grid(results(files), "drift")
    assert "(not started: run smt profile --scale paper) M" in drift.rows[0][4].text


@pytest.mark.parametrize(
    ("place", "message"),
    [("{smt_smal.params_m}", "did you mean smt_small"), ("{smt_small.flops}", "valid: params_m")],
)
def test_a_discrepancy_that_names_no_size_is_an_error(files, place, message):
    files.change("drift.yaml", f"{place} M", "discrepancies", 0, "ours")
    with pytest.raises(UserError, match=f"discrepancies.0.ours.*{message}"):
        grid(results(files), "drift")


# --- the command -------------------------------------------------------------------------------


def test_the_command_makes_tables_without_torch(files):
    files.finish(TINY)
    sync(files.project, files.layout)
    script = (
        "import sys; from smt.cli import cli; cli(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    )
    arguments = files.command("tables", "imagenet1k", "drift", "--scale", "demo")[3:]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "imagenet1k  1 done, 3 not started" in done.stdout
    assert str(files.layout.tables) in done.stdout
    assert not (files.layout.tables / "sizes.md").exists()


def test_an_unknown_table_names_the_nearest(files):
    done = files.smt("tables", "imagenet1", check=False)
    assert done.returncode == 2
    assert "did you mean imagenet1k" in done.stderr
    assert done.stderr.count("\n") == 1
