"""After a sync, MLflow has all points, params and tags of the runs' files, once."""

import json
import os
import socket
import sqlite3
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from smt.config.experiments import Run
from smt.errors import UserError
from smt.runs import journal, provenance
from smt.runs.atomic import read_json, sha256, write_json
from smt.tracking.client import TrackingClient
from smt.tracking.sync import FINAL_DIGEST_TAG, POINT_COUNT_TAG, POINTS_DIGEST_TAG, sync
from testbed.waiting import PATIENCE
from tests.helpers.run_files import CREATED, PARENT, RunFiles, S, T, expected_rows, remote, rows

TINY = Run(experiment=T, seed=0)
SMALL = Run(experiment=S, seed=0)


def send(files, *experiments):
    return sync(files.project, files.layout, experiments)


def test_every_value_of_the_journal_is_there_once(files):
    files.run(TINY)
    result = send(files)
    lines = files.lines(TINY, 2)
    assert rows(files, remote(files, TINY).run_id) == expected_rows(lines, CREATED)
    assert result.points == len(expected_rows(lines, CREATED))


def test_sending_again_changes_nothing(files):
    files.finish(TINY)
    send(files)
    before, run = rows(files, remote(files, TINY).run_id), remote(files, TINY)
    result = send(files)
    assert (result.updated_runs, result.points) == (0, 0)
    assert remote(files, TINY) == run
    assert rows(files, run.run_id) == before


def test_sending_all_of_it_again_changes_nothing(files):
    """Without the tags that say what has been sent, everything is sent again."""
    files.finish(TINY)
    send(files)
    run = remote(files, TINY)
    before = rows(files, run.run_id)
    for tag in (POINT_COUNT_TAG, POINTS_DIGEST_TAG, FINAL_DIGEST_TAG):
        TrackingClient.from_layout(files.layout).delete_tag(run.run_id, tag)
    assert send(files).points == len(before) - 3  # not the evaluation, whose tag is there
    assert rows(files, run.run_id) == before


def test_only_what_is_new_is_sent(files):
    work_dir = files.begin(TINY)
    lines = files.lines(TINY, 2)
    files.write_journal(work_dir, lines[:5])
    send(files)
    files.write_journal(work_dir, lines[:8])
    assert send(files).points == len(expected_rows(lines[:8], CREATED)) - len(
        expected_rows(lines[:5], CREATED)
    )
    assert rows(files, remote(files, TINY).run_id) == expected_rows(lines[:8], CREATED)


def test_a_journal_that_was_cut_back_and_written_again_is_there_once(files):
    work_dir = files.begin(TINY)
    lines = files.lines(TINY, 2)
    files.write_journal(work_dir, lines[:10])
    send(files)
    run_id = remote(files, TINY).run_id
    files.write_journal(work_dir, lines[:6])
    assert send(files).points == 0
    files.write_journal(work_dir, lines[:8])
    send(files)
    assert rows(files, run_id) == expected_rows(lines[:10], CREATED)
    files.write_journal(work_dir, lines)
    send(files)
    assert rows(files, run_id) == expected_rows(lines, CREATED)


def test_a_run_that_resumed_with_other_values_replaces_the_one_in_mlflow(files):
    """Resumed on another machine, a run can write other values after its checkpoint."""
    work_dir = files.begin(TINY)
    lines = files.lines(TINY, 2)
    files.write_journal(work_dir, lines[:10])
    send(files)
    for line in lines[6:]:
        line["metrics"] = {key: value + 1e-7 for key, value in line["metrics"].items()}
    files.write_journal(work_dir, lines)
    assert send(files).recreated_runs == (str(files.work_dir(TINY)),)
    assert rows(files, remote(files, TINY).run_id) == expected_rows(lines, CREATED)


def test_a_run_that_was_trained_again_replaces_the_one_in_mlflow(files):
    files.finish(TINY)
    send(files)
    first = remote(files, TINY).run_id
    files.begin(TINY, created=CREATED + 1e6)
    assert send(files).recreated_runs == (str(files.work_dir(TINY)),)
    assert remote(files, TINY).run_id != first


def test_an_incomplete_line_is_not_sent(files):
    work_dir = files.begin(TINY)
    lines = files.lines(TINY, 2)[:6]
    files.write_journal(work_dir, lines)
    with (work_dir / "journal.jsonl").open("a") as file:
        file.write('{"step": 70, "ep')
    send(files)
    assert rows(files, remote(files, TINY).run_id) == expected_rows(lines, CREATED)


def test_a_line_is_sent_once_its_time_is_written(files):
    """Otherwise it would be sent twice: with the time of another line, and then with its own."""
    work_dir = files.begin(TINY)
    lines = files.lines(TINY, 2)[:6]
    files.write_journal(work_dir, lines, timed=5)
    send(files)
    run_id = remote(files, TINY).run_id
    assert rows(files, run_id) == expected_rows(lines[:5], CREATED)
    files.write_journal(work_dir, lines)
    assert send(files).recreated_runs == ()
    assert rows(files, run_id) == expected_rows(lines, CREATED)


def test_a_journal_that_the_trainer_wrote_is_sent(files):
    """With the trainer's `Journal` and `record_attempt` in place of files of the test."""
    work_dir = files.begin(TINY)
    facts = read_json(work_dir / "provenance.json")
    (work_dir / "provenance.json").unlink()
    facts = {
        key: facts[key] for key in facts if key not in ("git", "packages", "created", "attempts")
    }
    provenance.record_attempt(work_dir, facts, {"resumed_at_step": 0})
    log = journal.Journal(work_dir, journal.Position())
    log.append(10, 0, {"train/loss": float("nan")}, {"system/memory_mb": 12.5})
    checkpoint = log.position
    log.append(20, 0, {"train/loss": 0.25}, {})
    log.close()
    send(files)
    before = rows(files, remote(files, TINY).run_id)
    resumed = journal.Journal(work_dir, checkpoint)
    resumed.append(20, 0, {"train/loss": 0.25}, {})
    resumed.append(62, 1, {"eval/top1": 50.0}, {})
    resumed.close()
    send(files)
    run = remote(files, TINY)
    assert len(rows(files, run.run_id)) == len(before) + 2  # eval/top1 and epoch
    assert run.metrics["eval/top1"] == 50.0
    assert run.tags["smt.package.torch"] == provenance.packages()["torch"]


def test_params_differ_in_what_differs_between_the_runs(files):
    files.change("scales.yaml", [1, 1, 6, 1], "demo", "models", "smt_small", "depths")
    for name, rate in (("imagenet1k_smt_tiny", 0.1), ("imagenet1k_smt_small", 0.2)):
        overlay = {"seeds": [0], "drop_path": rate}
        files.change("scales.yaml", overlay, "demo", "experiments", name)
    files.finish(TINY)
    files.finish(SMALL)
    send(files)
    tiny, small = remote(files, TINY), remote(files, SMALL)
    differing = {key for key in tiny.params if tiny.params[key] != small.params[key]}
    assert differing == {"model", "model.depths", "drop_path"}
    assert (tiny.params["model"], small.params["model"]) == ("smt_tiny", "smt_small")
    assert small.params["model.depths"] == "[1, 1, 6, 1]"
    recipe = files.project.recipes["imagenet1k"]
    assert tiny.params["recipe.optimizer.lr"] == str(recipe.optimizer.lr)
    assert tiny.params["recipe.schedule.epochs"] == str(recipe.schedule.epochs)
    assert tiny.params["environment.precision"] == "fp32"
    assert tiny.params["seed"] == "0"


def test_provenance_is_in_the_tags(files):
    child = Run(experiment="imagenet1k_smt_large_224", seed=0)
    files.finish(Run(experiment=PARENT, seed=0))
    files.finish(child)
    files.begin(child, attempts=3)
    send(files)
    tags = remote(files, child).tags
    parent = files.fingerprint(Run(experiment=PARENT, seed=0))
    expected = {
        "smt.fingerprint": files.fingerprint(child),
        "smt.git.commit": "c0ffee" * 6 + "c0ff",
        "smt.git.dirty": "false",
        "smt.data.imagenet1k": "imagenet1k",
        "smt.data.class_map.imagenet22k_to_1k": "imagenet22k_to_1k",
        "smt.parent.fingerprint": parent,
        "smt.parent.weights_sha256": "ab" * 32,
        "smt.weights_sha256": "ab" * 32,
        "smt.hardware.processor": "a CPU",
        "smt.attempts": "3",
        "smt.requeues": "2",
        "smt.slurm_jobs": "100 101 102",
        "smt.package.timm": "1.0.31",
        "mlflow.runName": "smt_large/imagenet22k_to_1k_224/seed0",
        "mlflow.source.git.commit": "c0ffee" * 6 + "c0ff",
    }
    assert {key: tags.get(key) for key in expected} == expected
    assert "demo scale: not comparable with the paper" in tags["mlflow.note.content"]


def test_metrics_and_evaluation_json_have_prefixes_of_their_own(files):
    files.finish(TINY, 96.5, evaluate=False)
    send(files)
    assert remote(files, TINY).metrics["final/top1"] == 96.5
    assert "evaluation/top1" not in remote(files, TINY).metrics
    files.finish(TINY, 96.5)
    assert send(files).points == 3
    assert remote(files, TINY).metrics["evaluation/top1"] == 96.5


def test_status_follows_the_files(files):
    work_dir = files.run(TINY)
    send(files)
    assert remote(files, TINY).status == "RUNNING"
    files.fail(TINY, "the loss is not finite")
    send(files)
    assert remote(files, TINY).status == "FAILED"
    assert remote(files, TINY).tags["smt.failure"] == "the loss is not finite"
    (work_dir / "failure.json").unlink()
    files.begin(TINY, attempts=2)
    send(files)
    assert remote(files, TINY).status == "RUNNING"
    assert "smt.failure" not in remote(files, TINY).tags
    files.finish(TINY)
    send(files)
    run = remote(files, TINY)
    assert run.status == "FINISHED"
    assert run.start_milliseconds == CREATED * 1000
    (entry,) = read_json(files.layout.sync_receipt)["runs"]
    assert (entry["run_id"], entry["status"]) == (run.run_id, "FINISHED")


def test_runs_of_older_params_stay(files):
    files.finish(TINY)
    send(files)
    old = remote(files, TINY)
    files.run(SMALL)
    files.change("scales.yaml", 3e-3, "demo", "recipes", "imagenet1k", "optimizer", "lr")
    files.begin(TINY, created=CREATED + 5)
    files.begin(SMALL, created=CREATED + 5)
    files.layout.metrics(TINY).unlink()  # as the DAG does before it trains again
    send(files)
    assert remote(files, TINY).status == "RUNNING"
    status = {run.run_id: run.status for run in TrackingClient.from_layout(files.layout).runs()}
    assert status[old.run_id] == "FINISHED"
    assert sorted(status.values()) == ["FINISHED", "KILLED", "RUNNING", "RUNNING"]


def test_only_the_named_experiments_are_sent_and_the_receipt_keeps_the_others(files):
    files.finish(TINY)
    send(files)
    files.finish(SMALL)
    files.change("scales.yaml", [0, 1], "demo", "seeds")
    other = Run(experiment=T, seed=1)
    files.finish(other)
    assert send(files, T).updated_runs == 1
    entries = read_json(files.layout.sync_receipt)["runs"]
    assert [(entry["experiment"], entry["seed"]) for entry in entries] == [(T, 0), (T, 1)]


def test_a_seed_that_the_scale_does_not_have_is_sent(files):
    files.finish(Run(experiment=T, seed=7))
    assert send(files).updated_runs == 1


def test_a_run_that_two_hosts_have_created_is_left_once(files):
    files.finish(TINY)
    send(files)
    run = remote(files, TINY)
    tags = {"smt.fingerprint": run.tags["smt.fingerprint"]}
    client = TrackingClient.from_layout(files.layout)
    client.create_run("imagenet1k", "twin", run.start_milliseconds + 1, tags)
    client.create_run("imagenet1k", "a run of a user", 0, {})
    send(files)
    assert remote(files, TINY) == run
    assert len(TrackingClient.from_layout(files.layout).runs()) == 2


def test_two_syncs_at_once_on_a_folder_without_database(tmp_path):
    files = RunFiles(tmp_path)
    for run in (TINY, SMALL):
        files.finish(run)
    with (tmp_path / "errors").open("wb") as errors:
        both = [files.start("sync", "--scale", "demo", stderr=errors) for _ in range(2)]
        codes = [process.wait(PATIENCE) for process in both]
    assert codes == [0, 0], (tmp_path / "errors").read_text()
    assert len(TrackingClient.from_layout(files.layout).runs()) == 2
    last = len(files.lines(TINY, 2)) + 7 + 3  # final/..., evaluation/...
    distinct = rows(files, remote(files, TINY).run_id)
    assert len(distinct) == len(set(distinct)) > last
    assert {row for row in distinct if not row[1].startswith(("final/", "evaluation/"))} == set(
        expected_rows(files.lines(TINY, 2), CREATED)
    )


def test_a_server_that_does_not_run_is_one_line_and_loses_nothing(files):
    files.finish(TINY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    uri = f"http://me:secret@{address}"
    started = time.monotonic()
    done = files.smt(
        "sync", "--scale", "demo", check=False, env={**os.environ, "MLFLOW_TRACKING_URI": uri}
    )
    assert time.monotonic() - started < 120  # MLflow's own default tries for four minutes
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"http://me:***@{address}" in done.stderr
    assert "secret" not in done.stderr
    assert "smt sync" in done.stderr
    assert not files.layout.sync_receipt.exists()
    assert send(files).updated_runs == 1


@pytest.mark.parametrize(
    "uri", ["postgresql://me@127.0.0.1:1/x", "file:/tmp/x", "nonsense", "sqlite:////proc/x/m.db"]
)
def test_a_uri_without_a_server_or_database_is_one_line(files, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError) as caught:
        send(files)
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_database_is_one_line(files):
    (files.layout.results / "mlflow.db").write_text("not a database\n" * 100)
    with pytest.raises(UserError, match=r"mlflow.db"):
        send(files)


def test_a_damaged_journal_names_its_folder(files):
    work_dir = files.run(TINY)
    (work_dir / "journal.jsonl").write_text("{}\nnot json\n")
    with pytest.raises(UserError, match=f"{work_dir}.*is damaged"):
        send(files)


def test_the_other_runs_are_sent_beside_a_damaged_one(files):
    work_dir = files.run(TINY)
    (work_dir / "journal.jsonl").write_text("{}\nnot json\n")
    files.finish(SMALL)
    with pytest.raises(UserError, match="all other runs are in MLflow"):
        send(files)
    assert remote(files, SMALL).status == "FINISHED"


def test_a_metric_name_that_mlflow_refuses_is_an_error_and_the_run_is_not_sent(files):
    work_dir = files.begin(TINY)
    files.write_journal(work_dir, [{"step": 1, "epoch": 0, "metrics": {"acc@1": 1.0}}])
    with pytest.raises(UserError, match=r"acc@1.*is not a valid name in MLflow"):
        send(files)
    assert TrackingClient.from_layout(files.layout).runs() == []


def test_a_param_that_is_too_long_for_mlflow_is_an_error(files):
    work_dir = files.begin(TINY)
    content = read_json(work_dir / "provenance.json")
    content["params"]["model"]["widths"] = "x" * 6001
    write_json(work_dir / "provenance.json", content)
    with pytest.raises(UserError, match=r"model.widths has 6001 characters"):
        send(files)


def test_an_unknown_experiment_names_the_nearest(files):
    with pytest.raises(UserError, match="did you mean imagenet1k_smt_tiny"):
        send(files, "imagenet1k_smt_tny")


def test_points_keep_every_digit(files):
    """Tables require that the metrics in MLflow and in the files are equal."""
    work_dir = files.begin(TINY)
    value = 0.1 + 0.2
    files.write_journal(work_dir, [{"step": 1, "epoch": 0, "metrics": {"train/loss": value}}])
    send(files)
    assert remote(files, TINY).metrics["train/loss"] == value
    assert json.dumps(value) == "0.30000000000000004"


# --- experiments, artifacts, registry --------------------------------------------------------


def test_a_table_is_an_experiment_and_a_run_is_named_after_model_recipe_and_seed(files):
    for run in (TINY, SMALL, Run(experiment=PARENT, seed=0)):
        files.run(run)
    send(files)
    client = TrackingClient.from_layout(files.layout)
    tables = {number: table for table, number in client.experiments().items()}
    assert sorted(tables.values()) == ["imagenet1k", "pretrain"]  # the parent is in no table
    names = {tables[run.experiment_id]: set() for run in client.runs()}
    with sqlite3.connect(files.layout.results / "mlflow.db") as database:
        for number, name in database.execute("select experiment_id, name from runs"):
            names[tables[str(number)]].add(name)
    assert names == {
        "imagenet1k": {"smt_tiny/imagenet1k/seed0", "smt_small/imagenet1k/seed0"},
        "pretrain": {"smt_large/imagenet22k/seed0"},
    }
    tags = remote(files, TINY).tags
    assert {"smt.table.imagenet1k", "smt.table.ablation_components"} <= tags.keys()
    assert tags["smt.task"] == "classify"


def with_weights(files, run, content=b"weights"):
    files.finish(run)
    files.layout.weights(run).write_bytes(content)
    metrics = read_json(files.layout.metrics(run))
    digest = sha256(files.layout.weights(run))
    write_json(files.layout.metrics(run), {**metrics, "weights_sha256": digest})


def artifacts(run_id, folder, uri):
    from mlflow.artifacts import download_artifacts

    target = download_artifacts(run_id=run_id, dst_path=str(folder), tracking_uri=uri)
    return {path.name: path.read_bytes() for path in Path(target).iterdir()}


def test_a_finished_run_has_its_files_as_artifacts(files, tmp_path):
    with_weights(files, TINY)
    files.run(SMALL)
    layout = files.layout
    assert sync(files.project, layout, files=True).uploads == 1
    assert sync(files.project, layout, files=True).uploads == 0
    content = artifacts(remote(files, TINY).run_id, tmp_path / "first", layout.tracking_uri())
    assert content["model.safetensors"] == b"weights"
    assert content["metrics.json"] == layout.metrics(TINY).read_bytes()
    provenance_file = files.work_dir(TINY) / "provenance.json"
    assert content["provenance.json"] == provenance_file.read_bytes()
    assert yaml.safe_load(content["params.yaml"]) == read_json(provenance_file)["params"]
    assert len(content) == 4
    with_weights(files, TINY, b"others")
    files.finish(SMALL, evaluate=False)  # its weights are not on this machine
    assert sync(files.project, layout, files=True).uploads == 1
    content = artifacts(remote(files, TINY).run_id, tmp_path / "second", layout.tracking_uri())
    assert content["model.safetensors"] == b"others"


def test_metrics_are_sent_although_the_artifact_store_is_full(files, small_disk):
    artifacts = files.layout.artifacts
    artifacts.symlink_to(small_disk)
    with_weights(files, TINY, os.urandom(9_000_000))
    with_weights(files, SMALL)
    done = files.smt("sync", "--scale", "demo", check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
    assert "--no-files" in done.stderr
    assert remote(files, TINY).status == remote(files, SMALL).status == "FINISHED"
    assert files.smt("sync", "--no-files", "--scale", "demo").returncode == 0
    (small_disk / "room").unlink(missing_ok=True)


def test_weights_are_registered_on_request_and_once(files):
    with_weights(files, TINY)
    files.run(SMALL)
    command = ("sync", "--register", "--experiment", T, "--scale", "demo")
    assert f"in the model registry: smt-demo-{T}, version 1: {TINY}" in files.smt(*command).stdout
    assert "in the model registry" not in files.smt(*command).stdout
    with_weights(files, TINY, b"others")
    assert "version 2" in files.smt(*command).stdout

    from mlflow.tracking.client import MlflowClient

    client = MlflowClient(files.layout.tracking_uri(), files.layout.tracking_uri())
    version = client.get_model_version(f"smt-demo-{T}", "2")
    assert version.run_id == remote(files, TINY).run_id
    assert version.tags["fingerprint"] == files.fingerprint(TINY)
    assert Path(urlsplit(version.source).path).read_bytes() == b"others"


def test_register_is_refused_with_no_files_and_with_watch(files):
    for options, word in ((("--no-files",), "--no-files"), (("--watch",), "--watch")):
        done = files.smt("sync", "--register", *options, "--scale", "demo", check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert word in done.stderr
