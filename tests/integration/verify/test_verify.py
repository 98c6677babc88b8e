"""`smt verify`: whatever is changed by hand in a finished project is found, and named."""

import csv
import hashlib
import json
import re
import shutil
import sqlite3

import pytest

from smt.commands.verify import summary
from smt.errors import EXIT_UNVERIFIED
from smt.runs.atomic import sha256
from smt.verify import tensors
from smt.verify.ledger import NOTHING
from tests.helpers.finished_project import (
    BESIDE,
    CHILD,
    DETECTORS,
    PARENT,
    RESULTS,
    RUNS,
    SEGMENTER,
    TABLES,
    T,
    audit,
    edit_json,
    flip,
    mismatches,
    run_dir,
    table,
    work_dir,
)


def verify(project, *arguments, **environment):
    done = project.smt("verify", *arguments, **environment)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def files(project):
    """The finished project without MLflow: what is changed in a file is found without it."""
    (project.folder / "results/mlflow.db").unlink()
    return project


def assert_mismatch(project, *words):
    """Assert that some line of a mismatch has all of these words; return all of them."""
    lines = mismatches(project)
    assert any(all(word in line for word in words) for line in lines), lines
    return lines


KINDS = ("runs ", "numbers ", "journals ", "provenance ", "weights ", "evaluations ", "tables ",
         "checkpoints ", "milestones ", "data ", "sizes ", "MLflow  ")  # fmt: skip


def database(project, statement, *values):
    with sqlite3.connect(project.folder / "results/mlflow.db") as connection:
        count = connection.execute(statement, values).rowcount
    assert count > 0, "the edit changed nothing"


# --- all is well -------------------------------------------------------------------------------


def test_unchanged_files_are_consistent(finished):
    done = verify(finished)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"everything is consistent: [\d,]+ values compared", lines[-1])
    counts = {line.split()[0]: line for line in lines[:-1] if not line.startswith(" ")}
    assert f"{len(RUNS)} runs that are done" in counts["runs"]
    assert counts.keys() == {each.strip() for each in KINDS}
    runs = ("journals", "weights", "evaluations", "MLflow", "checkpoints", "provenance")
    formats = 4 * len((*TABLES, *BESIDE)) + 2  # and the index, in two
    for kind, files in (*((kind, len(RUNS)) for kind in runs), ("data", 5), ("sizes", 2),
                        ("tables", formats)):  # fmt: skip
        assert re.search(rf"[1-9][\d,]* values of {files} (files|runs)", counts[kind]), kind
    assert re.search(r"[1-9][\d,]* values of [1-9]\d* files", counts["milestones"])
    assert "not compared" not in done.stdout


def test_it_writes_nothing(finished):
    folder = finished.folder / "results"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert verify(finished).returncode == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_one_experiment_alone(project):
    edit_json(run_dir(project) / "metrics.json", lambda it: it["metrics"].update(top1=99.0))
    done = verify(project, "--experiment", CHILD)
    assert done.returncode == 0, done.stdout
    assert "1 runs that are done" in done.stdout
    done = verify(project, "--experiment", T)
    assert done.returncode == EXIT_UNVERIFIED
    assert "metrics.json: metrics.top1: 99.0" in done.stdout
    assert re.search(r"\d+ of [\d,]+ values are inconsistent with their sources", done.stdout)


def test_a_name_that_does_not_exist_is_one_line(finished):
    done = verify(finished, "--experiment", "imagenet1k_smt_tinny")
    assert done.returncode == 2
    assert "did you mean imagenet1k_smt_tiny" in done.stderr


def test_without_mlflow_the_rest_is_verified_with_a_note(project):
    (project.folder / "results/mlflow.db").unlink()
    done = verify(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to compare with: no sqlite:///" in done.stdout


def test_a_server_that_does_not_answer_is_a_note(project):
    done = verify(project, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not compared: MLflow at http://127.0.0.1:9 does not answer" in done.stdout


def test_a_run_that_is_not_done_is_no_mismatch(project):
    shutil.rmtree(run_dir(project, T, 1))
    forget(project, "smt_tiny/imagenet1k/seed1")
    for suffix in ("md", "csv", "tex", "html"):
        for name in ("imagenet1k", "ablation_heads", "peers_imagenet1k"):  # where it stands
            table(project, f"{name}.{suffix}").unlink()
        table(project, f"index.{suffix}").unlink(missing_ok=True)
    output = "\n".join(summary(audit(project)))
    assert "are inconsistent" not in output
    assert "imagenet1k_smt_tiny-seed1 is not started" in output
    assert "imagenet1k has not been made yet" in output


def test_a_run_that_is_in_mlflow_alone_is_a_mismatch(project):
    shutil.rmtree(run_dir(project, T, 1))
    assert_mismatch(project, "imagenet1k_smt_tiny-seed1: its files are not here", "in MLflow alone")


def test_a_table_with_numbers_of_a_lost_run_is_a_mismatch(project):
    shutil.rmtree(run_dir(project, T, 1))
    forget(project, "smt_tiny/imagenet1k/seed1")
    assert_mismatch(
        project,
        "tables/imagenet1k.csv: row SMT-T, column n: 2 is inconsistent with 1, derived from",
    )


def forget(project, name):
    """Delete a run of MLflow's."""
    database(project, "update runs set lifecycle_stage = 'deleted' where name = ?", name)


# --- tables, in each format --------------------------------------------------------------------


def printed(project):
    with table(project, "imagenet1k.csv").open() as file:
        return next(row for row in csv.DictReader(file) if row["experiment"] == T)


@pytest.mark.parametrize("suffix", ["md", "tex", "html"])
def test_a_number_changed_in_a_table(files, suffix):
    number = f"{float(printed(files)['top1_mean']):.2f}"
    path = table(files, f"imagenet1k.{suffix}")
    text = path.read_text()
    assert number in text
    path.write_text(text.replace(number, "99.99", 1))
    lines = assert_mismatch(
        files, f"tables/imagenet1k.{suffix}: line ", "is inconsistent with", "99.99", number
    )
    assert len([line for line in lines if "tables/" in line]) == 1


def test_a_number_changed_in_a_csv(files):
    row = printed(files)
    path = table(files, "imagenet1k.csv")
    path.write_text(path.read_text().replace(row["top1_mean"], "99.9", 1))
    assert_mismatch(files, "imagenet1k.csv: row SMT-T, column top1_mean: 99.9", row["top1_mean"])


@pytest.mark.parametrize("name", ["index.md", "index.html", "drift.md", "sizes.csv"])
def test_a_word_changed_in_any_other_file(files, name):
    path = table(files, name)
    number = re.findall(r"\d+\.\d+", path.read_text())[-1]
    before, _, after = path.read_text().rpartition(number)
    path.write_text(f"{before}{float(number) + 1}{after}")
    assert_mismatch(files, f"tables/{name}: ", number)


def test_a_verdict_changed_in_a_table(files):
    path = table(files, "imagenet1k.md")
    path.write_text(path.read_text().replace("not comparable |", "reproduced |", 1))
    assert_mismatch(files, "imagenet1k.md: line ", "(SMT-T): ", "reproduced")


def test_the_notice_taken_off_a_table(files):
    path = table(files, "imagenet22k.html")
    path.write_text(path.read_text().replace("smoke scale: not comparable with the paper", ""))
    assert_mismatch(files, "imagenet22k.html: line ", "not comparable with the paper")


# --- records of a run --------------------------------------------------------------------------


def test_a_final_number(files):
    path = run_dir(files) / "metrics.json"
    edit_json(path, lambda it: it["metrics"].update(top1=99.0))
    lines = assert_mismatch(files, "metrics.json: metrics.top1: 99.0", "journal.jsonl, line ",
                  "the last evaluation")  # fmt: skip
    assert any("evaluation.json: metrics_sha256" in line for line in lines)


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 1), ("epochs", 300), ("images", 5), ("wall_seconds", 1.0), ("finished", 1.0),
     ("gpu_seconds", 3600.0), ("skipped_steps", 2), ("changes", ["torch 1 -> 2"]),
     ("task", "detect"), ("seed", 7), ("experiment", CHILD), ("fingerprint", "0" * 64),
     ("provenance_sha256", "0" * 64)],
)  # fmt: skip
def test_any_other_value_of_the_final_record(files, key, value):
    edit_json(run_dir(files) / "metrics.json", lambda it: it.update({key: value}))
    assert_mismatch(files, "metrics.json")


@pytest.mark.parametrize("key", ["journal", "times", "provenance_sha256"])
def test_a_digest_taken_out(files, key):
    edit_json(run_dir(files) / "metrics.json", lambda it: it.pop(key))
    assert_mismatch(files, "metrics.json: has no digest of ")


def test_a_record_from_before_there_were_digests_is_one_mismatch(project):
    def take_out(final):
        for key in ("journal", "times", "provenance_sha256"):
            del final[key]

    edit_json(run_dir(project, T, 1) / "metrics.json", take_out)
    edit_json(run_dir(project, T, 1) / "evaluation.json", lambda it: it.pop("metrics_sha256"))
    (line,) = mismatches(project)
    assert "seed1/metrics.json: has no digest of the files beside it" in line


def test_a_record_that_is_not_json(files):
    (run_dir(files) / "metrics.json").write_text("{")
    assert_mismatch(files, "metrics.json: is cut off", "smt train imagenet1k_smt_tiny --seed 0")


@pytest.mark.parametrize(
    "change", [lambda it: it.update(metrics=5), lambda it: it.update(metrics={"top1": "many"})]
)
def test_a_record_of_another_form(files, change):
    edit_json(run_dir(files) / "metrics.json", change)
    assert_mismatch(files, "metrics")


def test_a_provenance_of_another_form(files):
    edit_json(work_dir(files) / "provenance.json", lambda it: it.update(attempts="none"))
    lines = assert_mismatch(
        files, "provenance.json: attempts: should be a valid array", "train the run again"
    )
    assert not any("images: says" in line for line in lines), "a mismatch that is none"


def test_an_evaluation(files):
    path = run_dir(files) / "evaluation.json"
    edit_json(path, lambda it: it["metrics"].update(loss=it["metrics"]["loss"] + 1e-6))
    assert_mismatch(files, "evaluation.json: metrics.loss: ", "the same machine")


def test_the_images_of_an_evaluation(files):
    edit_json(run_dir(files) / "evaluation.json", lambda it: it.update(images=50_000))
    assert_mismatch(files, "evaluation.json: images: 50000 is inconsistent with 100, derived from")


# --- journal, times, provenance ----------------------------------------------------------------


def edit_journal(project, change, experiment=T):
    path = work_dir(project, experiment) / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    path.write_text(text)
    return path


def test_a_line_of_the_journal(files):
    edit_journal(files, lambda lines: lines[0]["metrics"].update({"train/loss": 0.1}))
    assert_mismatch(files, "journal.jsonl: sha256: ", "metrics.json, written when the run was done")


def test_a_line_of_the_journal_taken_out(files):
    edit_journal(files, lambda lines: lines.pop(0))
    assert_mismatch(files, "journal.jsonl: lines: ")


def test_a_torn_journal(files):
    path = work_dir(files) / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert_mismatch(files, "journal.jsonl: gives no final numbers: line ")


def test_the_times(files):
    path = work_dir(files) / "times.jsonl"
    path.write_text(re.sub(r'"time":\d', '"time":9', path.read_text(), count=1))
    assert_mismatch(files, "times.jsonl: sha256: ")


def test_a_param_in_the_provenance(files):
    def change(provenance):
        provenance["params"]["recipe"]["optimizer"]["lr"] = 1.0

    edit_json(work_dir(files) / "provenance.json", change)
    lines = assert_mismatch(files, "provenance.json: fingerprint: ", "the params in ")
    assert any("params.recipe.optimizer.lr: 1.0" in line for line in lines)


@pytest.mark.parametrize(
    ("experiment", "key", "value", "epochs"),
    [(T, "epochs", 3, 3), (DETECTORS[0], "epochs", 3, 3), (SEGMENTER, "steps", 12, 3),
     (SEGMENTER, "interval", 8, 1), (SEGMENTER, "interval", "many", NOTHING),
     (T, "epochs", None, NOTHING)],
)  # fmt: skip
def test_a_schedule_of_another_length_in_the_provenance(files, experiment, key, value, epochs):
    """Each task states its length by a key of its own: the journal has to have as many epochs."""

    def change(provenance):
        provenance["params"]["recipe"]["schedule"][key] = value

    edit_json(work_dir(files, experiment) / "provenance.json", change)
    ends = 1 if experiment in DETECTORS else 2
    what = f"{ends} is inconsistent with {epochs}, derived from"
    assert_mismatch(files, f"journal.jsonl: epochs of its last line: {what}",
          "params.recipe.schedule")  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it["git"].update(commit="c0ffee"),
        lambda it: it["packages"].update(torch="1.0"),
        lambda it: it["hardware"].update(processor="an abacus"),
        lambda it: it["attempts"][0].update(slurm_job_id="7"),
        lambda it: it["data"].update(imagenet1k="0" * 64),
        lambda it: it["names"].update(recipe="another"),
    ],
)
def test_anything_else_in_the_provenance(files, change):
    edit_json(work_dir(files) / "provenance.json", change)
    assert_mismatch(
        files, "provenance.json: SHA-256: ", "metrics.json, written when the run was done"
    )


def test_the_kept_difference_from_the_commit(files):
    (path,) = work_dir(files).glob("git-*.diff")
    assert "+# not committed" in path.read_text()
    path.write_text(path.read_text().replace("+# not committed", "+# nothing"))
    assert_mismatch(files, f"{path.name}: SHA-256: ", "provenance.json")


def test_the_recorded_parent_of_a_run(files):
    def change(provenance):
        provenance["parent"]["weights_sha256"] = "0" * 64

    edit_json(work_dir(files, CHILD) / "provenance.json", change)
    assert_mismatch(files, "provenance.json: parent.weights_sha256: 0000", PARENT)


# --- weights, checkpoints, data ----------------------------------------------------------------


def test_a_bit_of_the_weights(files):
    flip(run_dir(files) / "model.safetensors")
    assert_mismatch(files, "model.safetensors: SHA-256: ", "metrics.json")


def test_the_weights_of_another_seed(files):
    path = run_dir(files) / "model.safetensors"
    shutil.copy(run_dir(files, T, 1) / "model.safetensors", path)
    digest = sha256(path)
    edit_json(run_dir(files) / "metrics.json", lambda it: it.update(weights_sha256=digest))
    lines = assert_mismatch(
        files, "model.safetensors: seed: 1 is inconsistent with 0, derived from"
    )
    assert any("is not that of" in line and "checkpoints" in line for line in lines)


def test_weights_that_were_replaced_along_with_their_digest(files):
    """The last checkpoint still holds those that were trained."""
    path = run_dir(files) / "model.safetensors"
    flip(path)
    digest = sha256(path)
    edit_json(run_dir(files) / "metrics.json", lambda it: it.update(weights_sha256=digest))
    edit_json(run_dir(files) / "evaluation.json", lambda it: it.update(weights_sha256=digest))
    assert_mismatch(files, "model.safetensors: tensor ", "is not that of ", "checkpoints/step-")


def test_a_checkpoint(files):
    path = max((work_dir(files) / "checkpoints").iterdir())
    flip(path)
    assert_mismatch(files, "checkpoints/step-", "SHA-256: ", "its name")


@pytest.mark.parametrize(
    ("name", "where"),
    [("imagenet1k.json", "imagenet1k.json"), ("class_map_imagenet22k_to_1k.json", "class_map")],
)
def test_the_digest_of_a_manifest(files, name, where):
    edit_json(files.folder / RESULTS / "data" / name, lambda it: it.update(digest="0" * 64))
    assert_mismatch(files, where, "digest: 0000", "derived from its ")


def test_the_counts_of_a_manifest(files):
    def change(manifest):
        manifest["splits"]["val"]["per_class"][0] += 1

    edit_json(files.folder / RESULTS / "data/imagenet1k.json", change)
    assert_mismatch(files, "imagenet1k.json: splits.val.per_class: ")


def test_a_list_of_images(files):
    path = files.folder / RESULTS / "data/imagenet1k.val.txt"
    path.write_text(path.read_text().replace("0000.", "9999.", 1))
    assert_mismatch(files, "imagenet1k.val.txt: SHA-256: ", "imagenet1k.json")


def test_measured_sizes(files):
    def change(sizes):
        sizes["smt_tiny"]["params"] += 1
        next(iter(sizes["smt_large"]["macs"].values()))["attention"] += 1

    edit_json(files.folder / RESULTS / "sizes.json", change)
    lines = assert_mismatch(files, "sizes.json: smt_tiny.params: ", "model.safetensors")
    assert any("smt_large.macs.32.attention" in line and "the formula" in line for line in lines)


def test_weights_are_evaluated_and_sizes_counted_again(project):
    def change(sizes):
        sizes["smt_tiny"]["macs"]["224"]["reported"] += 1

    edit_json(project.folder / "results/paper/sizes.json", change)
    done = verify(project, "--evaluate")
    assert done.returncode == EXIT_UNVERIFIED
    assert re.search(rf"evaluated again +\d+ values of {len(RUNS)} runs", done.stdout)
    wrong = [line for line in done.stdout.splitlines() if " is inconsistent with " in line]
    assert any("results/paper/sizes.json: smt_tiny.macs.224.reported: " in line for line in wrong)
    assert not any("evaluated again" in line for line in wrong), wrong


# --- MLflow ------------------------------------------------------------------------------------

METRIC = "update metrics set value = 99 where key = 'eval/top1' and step = 20"
LATEST = "update latest_metrics set value = 99 where key = ?"


def test_a_value_too_many_in_a_metrics_history(project):
    columns = "key, value, timestamp, run_uuid, step, is_nan"
    database(
        project,
        f"insert into metrics ({columns}) select key, 50.5, timestamp + 1, run_uuid, step, is_nan "
        "from metrics where key = 'eval/loss' and step = 20",
    )
    assert_mismatch(
        project, "metric eval/loss at step 20: 50.5 is inconsistent with nothing, derived from"
    )


def test_a_value_in_a_metrics_history(project):
    database(project, METRIC)
    assert_mismatch(
        project, "MLflow run ", "metric eval/top1 at step 20: 99.0 is inconsistent with ", T
    )


@pytest.mark.parametrize("key", ["final/top1", "eval/top5", "evaluation/loss", "train/loss"])
def test_the_last_value_of_a_metric(project, key):
    database(project, LATEST, key)
    assert_mismatch(project, "MLflow run ", f"metric {key}: 99.0")


def test_a_param(project):
    database(project, "update params set value = '7' where key = 'recipe.optimizer.lr'")
    assert_mismatch(project, "MLflow run ", "param recipe.optimizer.lr: 7")


@pytest.mark.parametrize("key", ["smt.git.commit", "smt.weights_sha256", "smt.hardware.host"])
def test_a_tag(project, key):
    database(project, "insert or replace into tags select ?, 'another', run_uuid from runs", key)
    assert_mismatch(project, "MLflow run ", f"tag {key}: another")


def test_a_status(project):
    database(project, "update runs set status = 'FAILED'")
    assert_mismatch(
        project, "MLflow run ", "status: FAILED is inconsistent with FINISHED, derived from"
    )


def test_the_receipt(project):
    edit_json(project.folder / RESULTS / "mlflow.json", lambda it: it["runs"][0].update(run_id="x"))
    assert_mismatch(project, "receipt of ", "run_id: x")


# --- an attacker who edits several places that agree ---------------------------------------------


def forge(project, top1=99.0):
    """Write another top-1 for SMT-T wherever it is printed, MLflow and the tables included.

    This leaves the journal alone, and the digest that the evaluation has of the record.
    """
    for seed in (0, 1):
        for name in ("metrics.json", "evaluation.json"):
            edit_json(run_dir(project, T, seed) / name, lambda it: it["metrics"].update(top1=top1))
        digest = sha256(run_dir(project, T, seed) / "metrics.json")
        edit_json(
            run_dir(project, T, seed) / "evaluation.json",
            lambda it, digest=digest: it.update(metrics_sha256=digest),
        )
    for name in ("metrics", "latest_metrics"):
        database(
            project,
            f"update {name} set value = ? where key like '%/top1' and run_uuid in "
            "(select run_uuid from tags where key = 'smt.experiment' and value = ?)",
            top1, T,
        )  # fmt: skip
    made = project.smt("tables")
    assert made.returncode == 0, made.stderr
    assert f"{top1:.2f}" in table(project, "imagenet1k.md").read_text()


def test_numbers_tables_and_mlflow_forged_alike_are_found_by_the_journal(project):
    forge(project)
    lines = assert_mismatch(project, "metrics.json: metrics.top1: 99.0", "journal.jsonl, line ")
    assert any("imagenet1k.md: line " in line and "99.00" in line for line in lines)


def forge_journal(project, seed):
    """Let the journal say 99 at every evaluation; return its path."""
    path = work_dir(project, T, seed) / "journal.jsonl"
    path.write_text(re.sub(r'"eval/top1":[\d.]+', '"eval/top1":99.0', path.read_text()))
    return path


def forge_digest(project, seed, path):
    """Let the final record agree with the journal."""
    content = path.read_bytes()
    extent = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content),
              "lines": content.count(b"\n")}  # fmt: skip
    edit_json(run_dir(project, T, seed) / "metrics.json", lambda it: it.update(journal=extent))


def test_the_journal_forged_with_them_is_found_by_its_digest(project):
    for seed in (0, 1):
        forge_journal(project, seed)
    forge(project)
    assert_mismatch(project, "journal.jsonl: sha256: ", "metrics.json")


def test_the_digest_of_the_journal_forged_as_well_is_found_by_the_checkpoint(project):
    for seed in (0, 1):
        forge_digest(project, seed, forge_journal(project, seed))
    forge(project)
    assert_mismatch(project, "journal.jsonl: best eval/top1: 99.0", "checkpoints/step-")


def forge_chain(path):
    """Let every milestone of a journal agree with the lines before it."""
    before = hashlib.sha256()
    lines = [json.loads(line) for line in path.open()]
    for line in lines:
        if "milestone" in line:
            line["milestone"]["journal"] = before.hexdigest()
        before.update((json.dumps(line, separators=(",", ":")) + "\n").encode())
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def test_weights_do_not_give_forged_numbers_though_all_files_agree(project):
    """Without checkpoints the chain of milestones is left to tell, and then only the weights."""
    journals = {seed: forge_journal(project, seed) for seed in (0, 1)}
    for seed, path in journals.items():
        shutil.rmtree(work_dir(project, T, seed) / "checkpoints")
        forge_digest(project, seed, path)
    forge(project)
    assert_mismatch(project, "journal.jsonl: line ", "the chain of milestones is broken")
    for seed, path in journals.items():
        forge_chain(path)
        forge_digest(project, seed, path)
    forge(project)
    done = verify(project)
    assert done.returncode == 0, done.stdout  # docs/verify.md says so
    done = verify(project, "--evaluate", "--experiment", T)
    assert done.returncode == EXIT_UNVERIFIED
    assert re.search(
        r"journal\.jsonl, line \d+ \(the last evaluation\): top1: 99\.0 is inconsistent "
        r"with [\d.]+, derived from .*model\.safetensors, evaluated again",
        done.stdout,
    )


# --- records of a training ---------------------------------------------------------------------


def test_the_provenance_holds_all_parts_of_the_design(finished):
    final = json.loads((run_dir(finished, CHILD) / "metrics.json").read_text())
    folder = work_dir(finished, CHILD)
    journal = (folder / "journal.jsonl").read_bytes()
    assert final["journal"] == {
        "sha256": hashlib.sha256(journal).hexdigest(),
        "bytes": len(journal),
        "lines": journal.count(b"\n"),
    }
    provenance = json.loads((folder / "provenance.json").read_text())
    (attempt,) = provenance["attempts"]
    assert attempt["started"] < attempt["ended"] == final["finished"]
    assert final["gpu_seconds"] == 0.0  # trained on a CPU
    assert {"commit", "dirty", "diff_sha256", "slurm_job_id", "slurm_restart", "slurm_nodes"} <= (
        attempt.keys()
    )
    parent = json.loads((run_dir(finished, PARENT) / "metrics.json").read_text())
    assert provenance["parent"]["weights_sha256"] == parent["weights_sha256"]
    header = tensors.read(run_dir(finished, CHILD) / "model.safetensors")
    assert header.smt["fingerprint"] == final["fingerprint"]
