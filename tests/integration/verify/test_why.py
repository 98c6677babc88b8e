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
    output = why(finished, "imagenet1k", "SMT-T")
    for seed in (0, 1):
        final = record(run_dir(finished, T, seed) / "metrics.json")
        provenance = record(work_dir(finished, T, seed) / "provenance.json")
        assert f"run {T}-seed{seed}: loss " in output
        assert f"fingerprint {final['fingerprint']} (of the present params and data)" in output
        assert final["weights_sha256"][:16] in output
        assert provenance["data"]["imagenet1k"][:16] in output
        assert f"code: commit {provenance['git']['commit']}, with changes" in output
        assert f"git-{provenance['git']['diff_sha256'][:12]}.diff" in output
        lines = (work_dir(finished, T, seed) / "journal.jsonl").read_text().count("\n")
        folder = work_dir(finished, T, seed).relative_to(finished.folder)
        assert f"{folder}/journal.jsonl, line {lines} (the last evaluation): equal" in output
    top1 = [record(run_dir(finished, T, s) / "metrics.json")["metrics"]["top1"] for s in (0, 1)]
    assert (
        f"Top-1 (%): {sum(top1) / 2:.2f} ± " in output and "2 of 2 seeds; reported 82.2" in output
    )
    assert "smoke scale: not comparable with the paper" in output
    assert "MLflow: run " in output and "without SLURM" in output
    assert output.count("starts from: no other run") == 2


def test_it_names_the_best_epoch_of_each_run_that_was_evaluated_more_than_once(finished):
    output = why(finished, "imagenet1k", "SMT-T")
    for seed in (0, 1):
        folder = work_dir(finished, T, seed)
        lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
        tops = {each["epoch"]: each["metrics"].get("eval/top1") for each in lines}
        best = max((value, -epoch) for epoch, value in tops.items() if value is not None)
        assert f"best epoch: top-1 {best[0]:.2f} at epoch {-best[1]}, of 2 evaluations: " in output
    detector = why(finished, "coco_detectors", DETECTORS[1])  # evaluated once
    assert "best epoch" not in detector[: detector.index("starts from")]


def test_it_walks_down_to_the_pretraining(finished):
    output = why(finished, "imagenet22k", "SMT-L at 384")
    parent = record(run_dir(finished, PARENT) / "metrics.json")
    start = f"starts from {PARENT}-seed0, weights {parent['weights_sha256'][:16]}..."
    assert start in output
    below = output[output.index(start) :]
    assert f"fingerprint {parent['fingerprint']}" in below
    assert "recipe imagenet22k, seed 0" in below and "starts from: no other run" in below
    assert "class_map:imagenet22k_to_1k: digest " in output[: output.index(start)]


def params_of(project, experiment):
    (path,) = (run_dir(project, experiment)).glob("work-*/provenance.json")
    return record(path)["params"]


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_every_table_leads_to_its_params(finished, table):
    """Of whatever task: classifiers, detectors and segmenters state schedules by different keys."""
    project = load(finished)
    for row in project.tables[table].rows:
        output = why(finished, table, row.label)
        assert output.splitlines()[0] == f"{project.tables[table].title}: {row.label}"
        for seed in project.seeds(row.experiment):
            assert f"run {row.experiment}-seed{seed}: " in output
        recipe = project.experiments[row.experiment].recipe
        assert f"recipe {recipe}, seed " in output
        assert "not started" not in output and "NOT" not in output


def test_a_classifier_shows_epochs_and_one_size(finished):
    output = why(finished, "imagenet1k", "SMT-T")
    assert "epochs: 2, at 32 pixels, global batch 16, lr 0.004, weight decay 0.05" in output
    assert "head " not in output.replace("heads", "")


def test_a_detector_shows_epochs_both_sides_and_its_head(finished):
    output = why(finished, "coco_mask_rcnn", DETECTORS[0])
    own = output[: output.index("starts from")]
    assert "epochs: 1, at 64 x 64 pixels, global batch 4, lr 0.002" in own
    assert "head two_stage, 10 classes" in own


def test_a_segmenter_shows_steps_and_their_interval(finished):
    output = why(finished, "ade20k", "SMT-S")
    own = output[: output.index("starts from")]
    lr = params_of(finished, SEGMENTER)["recipe"]["optimizer"]["lr"]
    assert f"steps: 8, evaluated every 4, at 64 x 64 pixels, global batch 4, lr {lr:g}" in own
    assert "head upernet, 11 classes" in own
    assert "epochs: 2, at 32 pixels" in output[output.index("starts from") :]  # its backbone


def test_every_line_is_part_of_a_tree(finished):
    lines = why(finished, "imagenet22k", "SMT-L at 384").splitlines()
    assert not re.match(r"[├└│ ]", lines[0])
    assert all(re.match(r"(│  |   )*[├└]─ \S", line) for line in lines[1:])


def test_a_row_by_experiment_and_in_any_case(finished):
    assert why(finished, "imagenet22k", CHILD_384) == why(finished, "imagenet22k", "smt-l AT 384")


def test_wrong_names_get_the_nearest(finished):
    assert "did you mean imagenet22k" in why(finished, "imagenet22", "SMT-T", code=2)
    assert "did you mean SMT-L at 384" in why(finished, "imagenet22k", "SMT-L at 348", code=2)
    output = why(finished, "sizes", "SMT-T", code=2)
    assert "table sizes has no runs behind it" in output and "imagenet1k" in output


def test_a_damaged_record_is_one_line(project):
    (run_dir(project, CHILD) / "metrics.json").write_text("{")
    assert "metrics.json: is cut off" in why(project, "imagenet22k", CHILD, code=2)


def test_a_record_of_another_form_is_one_line(project):
    edit_json(work_dir(project, CHILD) / "provenance.json", lambda it: it.pop("params"))
    output = why(project, "imagenet22k", CHILD, code=2)
    assert "provenance.json: has no params; move " in output


def test_a_run_that_records_itself_as_its_parent(project):
    final = record(run_dir(project, CHILD) / "metrics.json")

    def change(provenance):
        provenance["parent"].update(experiment=CHILD, weights_sha256=final["weights_sha256"])

    edit_json(work_dir(project, CHILD) / "provenance.json", change)
    assert "that cannot be, for it starts from this one" in why(project, "imagenet22k", CHILD)


def test_inconsistent_files_are_marked(project):
    edit_json(run_dir(project, CHILD) / "metrics.json", lambda it: it["metrics"].update(top1=99))
    edit_json(run_dir(project, PARENT) / "metrics.json", lambda it: it.update(weights_sha256="0"))
    output = why(project, "imagenet22k", CHILD)
    assert "(the last evaluation): NOT EQUAL" in output
    assert "NOT those that are there now" in output


def test_attempts_with_their_jobs(project):
    def change(provenance):
        first = {**provenance["attempts"][0], "slurm_job_id": "1234", "slurm_nodes": "n[1-2]"}
        provenance["attempts"] = [first, {**first, "resumed_at_step": 7}]

    edit_json(work_dir(project, CHILD) / "provenance.json", change)
    output = why(project, "imagenet22k", CHILD)
    assert "attempts: 2, SLURM jobs 1234, " in output
    assert re.search(r"UTC: from step 7, \S+, job 1234 on n\[1-2\]", output)


def test_a_run_that_is_not_done(project):
    (run_dir(project, T, 1) / "metrics.json").unlink()
    output = why(project, "imagenet1k", "SMT-T")
    assert f"run {T}-seed1: stopped" in output and "1 of 2 seeds" in output
