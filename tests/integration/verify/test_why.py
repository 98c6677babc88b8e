"""`smt why`: from a cell of a table to everything that it comes from."""

import json
import re

import pytest

from tests.helpers.finished_project import (
    CHILD,
    CHILD_384,
    DETECTORS,
    PARENT,
    SEGMENTER,
    TABLES,
    T,
    edit_json,
    load,
    run_dir,
    work_dir,
)


def why(project, *arguments, code=0):
    done = project.smt("why", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def record(path):
    return json.loads(path.read_text())


def test_a_row_leads_to_each_of_its_runs(finished):
    said = why(finished, "imagenet1k", "SMT-T")
    for seed in (0, 1):
        final = record(run_dir(finished, T, seed) / "metrics.json")
        known = record(work_dir(finished, T, seed) / "provenance.json")
        assert f"run {T}-seed{seed}: loss " in said
        assert f"fingerprint {final['fingerprint']} (of the present params and data)" in said
        assert final["weights_sha256"][:16] in said
        assert known["data"]["imagenet1k"][:16] in said
        assert f"code: commit {known['git']['commit']}, with changes" in said
        assert f"git-{known['git']['diff_sha256'][:12]}.diff" in said
        lines = (work_dir(finished, T, seed) / "journal.jsonl").read_text().count("\n")
        folder = work_dir(finished, T, seed).relative_to(finished.folder)
        assert f"{folder}/journal.jsonl, line {lines} (the last evaluation): equal" in said
    top1 = [record(run_dir(finished, T, s) / "metrics.json")["metrics"]["top1"] for s in (0, 1)]
    assert f"Top-1 (%): {sum(top1) / 2:.2f} ± " in said and "2 of 2 seeds; reported 82.2" in said
    assert "smoke scale: not comparable with the paper" in said
    assert "MLflow: run " in said and "without SLURM" in said
    assert said.count("starts from: no other run") == 2


def test_it_names_the_best_epoch_of_each_run_that_was_evaluated_more_than_once(finished):
    said = why(finished, "imagenet1k", "SMT-T")
    for seed in (0, 1):
        folder = work_dir(finished, T, seed)
        lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
        tops = {each["epoch"]: each["metrics"].get("eval/top1") for each in lines}
        best = max((value, -epoch) for epoch, value in tops.items() if value is not None)
        assert f"best epoch: top-1 {best[0]:.2f} at epoch {-best[1]}, of 2 evaluations: " in said
    detector = why(finished, "coco_detectors", DETECTORS[1])  # evaluated once
    assert "best epoch" not in detector[: detector.index("starts from")]


def test_it_walks_down_to_the_pretraining(finished):
    said = why(finished, "imagenet22k", "SMT-L at 384")
    parent = record(run_dir(finished, PARENT) / "metrics.json")
    start = f"starts from {PARENT}-seed0, weights {parent['weights_sha256'][:16]}..."
    assert start in said
    below = said[said.index(start) :]
    assert f"fingerprint {parent['fingerprint']}" in below
    assert "recipe imagenet22k, seed 0" in below and "starts from: no other run" in below
    assert "class_map:imagenet22k_to_1k: digest " in said[: said.index(start)]


def params_of(project, experiment):
    (path,) = (run_dir(project, experiment)).glob("work-*/provenance.json")
    return record(path)["params"]


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_every_table_leads_to_its_params(finished, table):
    """Of whatever task: classifiers, detectors and segmenters state schedules by different keys."""
    known = load(finished)
    for row in known.tables[table].rows:
        said = why(finished, table, row.label)
        assert said.splitlines()[0] == f"{known.tables[table].title}: {row.label}"
        for seed in known.seeds(row.experiment):
            assert f"run {row.experiment}-seed{seed}: " in said
        recipe = known.experiments[row.experiment].recipe
        assert f"recipe {recipe}, seed " in said
        assert "not started" not in said and "NOT" not in said


def test_a_classifier_says_epochs_and_one_size(finished):
    said = why(finished, "imagenet1k", "SMT-T")
    assert "epochs: 2, at 32 pixels, global batch 16, lr 0.004, weight decay 0.05" in said
    assert "head " not in said.replace("heads", "")


def test_a_detector_says_epochs_both_sides_and_its_head(finished):
    said = why(finished, "coco_mask_rcnn", DETECTORS[0])
    own = said[: said.index("starts from")]
    assert "epochs: 1, at 64 x 64 pixels, global batch 4, lr 0.002" in own
    assert "head two_stage, 10 classes" in own


def test_a_segmenter_says_steps_and_their_interval(finished):
    said = why(finished, "ade20k", "SMT-S")
    own = said[: said.index("starts from")]
    lr = params_of(finished, SEGMENTER)["recipe"]["optimizer"]["lr"]
    assert f"steps: 8, evaluated every 4, at 64 x 64 pixels, global batch 4, lr {lr:g}" in own
    assert "head upernet, 11 classes" in own
    assert "epochs: 2, at 32 pixels" in said[said.index("starts from") :]  # its backbone


def test_every_line_is_part_of_a_tree(finished):
    lines = why(finished, "imagenet22k", "SMT-L at 384").splitlines()
    assert not re.match(r"[├└│ ]", lines[0])
    assert all(re.match(r"(│  |   )*[├└]─ \S", line) for line in lines[1:])


def test_a_row_by_experiment_and_in_any_case(finished):
    assert why(finished, "imagenet22k", CHILD_384) == why(finished, "imagenet22k", "smt-l AT 384")


def test_wrong_names_get_the_nearest(finished):
    assert "did you mean imagenet22k" in why(finished, "imagenet22", "SMT-T", code=2)
    assert "did you mean SMT-L at 384" in why(finished, "imagenet22k", "SMT-L at 348", code=2)
    said = why(finished, "sizes", "SMT-T", code=2)
    assert "table sizes has no runs behind it" in said and "imagenet1k" in said


def test_a_damaged_record_is_one_line(project):
    (run_dir(project, CHILD) / "metrics.json").write_text("{")
    assert "metrics.json: is cut off" in why(project, "imagenet22k", CHILD, code=2)


def test_a_record_of_another_form_is_one_line(project):
    edit_json(work_dir(project, CHILD) / "provenance.json", lambda it: it.pop("params"))
    said = why(project, "imagenet22k", CHILD, code=2)
    assert "provenance.json: has no params; move " in said


def test_a_run_that_says_it_starts_from_itself(project):
    final = record(run_dir(project, CHILD) / "metrics.json")

    def change(known):
        known["parent"].update(experiment=CHILD, weights_sha256=final["weights_sha256"])

    edit_json(work_dir(project, CHILD) / "provenance.json", change)
    assert "that cannot be, for it starts from this one" in why(project, "imagenet22k", CHILD)


def test_what_does_not_fit_together_is_said(project):
    edit_json(run_dir(project, CHILD) / "metrics.json", lambda it: it["metrics"].update(top1=99))
    edit_json(run_dir(project, PARENT) / "metrics.json", lambda it: it.update(weights_sha256="0"))
    said = why(project, "imagenet22k", CHILD)
    assert "(the last evaluation): NOT EQUAL" in said
    assert "NOT those that are there now" in said


def test_attempts_with_their_jobs(project):
    def change(known):
        first = {**known["attempts"][0], "slurm_job_id": "1234", "slurm_nodes": "n[1-2]"}
        known["attempts"] = [first, {**first, "resumed_at_step": 7}]

    edit_json(work_dir(project, CHILD) / "provenance.json", change)
    said = why(project, "imagenet22k", CHILD)
    assert "attempts: 2, SLURM jobs 1234, " in said
    assert re.search(r"UTC: from step 7, \S+, job 1234 on n\[1-2\]", said)


def test_a_run_that_is_not_done(project):
    (run_dir(project, T, 1) / "metrics.json").unlink()
    said = why(project, "imagenet1k", "SMT-T")
    assert f"run {T}-seed1: stopped" in said and "1 of 2 seeds" in said
