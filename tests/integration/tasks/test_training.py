"""`smt train` and `smt evaluate` as a user runs them: real data, processes, signals and faults."""

import json
import os
import shutil
import signal
import subprocess

import pytest

from smt.engine.workdir import exclusive
from smt.tasks import evaluation
from tests.helpers import ROOT
from tests.helpers.trainings import (
    await_step,
    command,
    edit_demo,
    make_project,
    metrics,
    one_line,
    run_dir,
    smt,
    weights,
    work_dir,
)


@pytest.fixture
def project(tmp_path, demo_data):
    return make_project(tmp_path, demo_data)


def test_a_run_leaves_weights_numbers_and_provenance(project):
    done = smt(project, "train", "imagenet1k_smt_tiny")
    assert "epoch 2/2" in done.stderr and "images/s" in done.stderr
    said = metrics(project)
    assert said["epochs"] == 2 and said["steps"] == 2 * (4000 // 64)
    assert set(said["metrics"]) == {"top1", "top5", "loss"}
    known = json.loads((work_dir(project) / "provenance.json").read_text())
    assert known["fingerprint"] == said["fingerprint"]
    assert known["params"]["recipe"]["schedule"]["epochs"] == 2
    assert known["packages"]["torch"] and known["hardware"]["processor"]
    assert known["data"]["imagenet1k"] == json.loads(
        (project / "results/demo/data/imagenet1k.json").read_text()
    )["digest"]  # fmt: skip

    again = smt(project, "train", "imagenet1k_smt_tiny")
    assert "is done" in again.stdout and "epoch" not in again.stderr

    smt(project, "evaluate", "imagenet1k_smt_tiny")
    evaluation = json.loads((run_dir(project) / "evaluation.json").read_text())
    assert evaluation["metrics"] == said["metrics"] and evaluation["images"] == 1000


def test_stopped_and_killed_it_goes_on_to_the_same_bytes(project, tmp_path):
    smt(project, "train", "imagenet1k_smt_tiny")
    expected = weights(project), (work_dir(project) / "journal.jsonl").read_bytes()
    shutil.rmtree(run_dir(project))

    codes = []
    for number, wait_for in ((signal.SIGTERM, 20), (signal.SIGKILL, 70), (signal.SIGUSR2, 90)):
        process = subprocess.Popen(
            command("train", "imagenet1k_smt_tiny", "--checkpoint-minutes", "0.01"),
            cwd=project, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        await_step(run_dir(project), wait_for, process)
        process.send_signal(number)
        codes.append(process.wait())
    assert codes == [75, -signal.SIGKILL, 75]
    done = smt(project, "train", "imagenet1k_smt_tiny")
    assert "goes on after step" in done.stderr
    assert (weights(project), (work_dir(project) / "journal.jsonl").read_bytes()) == expected
    known = json.loads((work_dir(project) / "provenance.json").read_text())
    steps = [attempt["resumed_at_step"] for attempt in known["attempts"]]
    assert len(steps) == 4 and steps[0] == 0 and steps == sorted(steps) and steps[-1] >= 90
    # Of the attempt that was killed the end is where it was last seen at work.
    times = [(attempt["started"], attempt["ended"]) for attempt in known["attempts"]]
    assert all(started < ended for started, ended in times)
    assert [at for each in times for at in each] == sorted(at for each in times for at in each)
    assert times[-1][1] == metrics(project)["finished"]


def test_two_ranks_keep_the_global_batch_and_count_every_image_once(project):
    smt(project, "train", "imagenet1k_smt_tiny")
    alone = metrics(project)
    first = json.loads((work_dir(project) / "journal.jsonl").read_text().splitlines()[0])
    shutil.rmtree(run_dir(project))
    done = smt(project, "train", "imagenet1k_smt_tiny", ranks=2)
    pair = metrics(project)
    assert (pair["steps"], pair["images"]) == (alone["steps"], alone["images"])
    assert pair["fingerprint"] == alone["fingerprint"]
    # Same samples, same augmentation, same draws: only the order of sums differs.
    record = json.loads((work_dir(project) / "journal.jsonl").read_text().splitlines()[0])
    assert record["metrics"]["train/lr"] == first["metrics"]["train/lr"]
    assert record["metrics"]["train/loss"] == pytest.approx(
        first["metrics"]["train/loss"], rel=1e-3
    )
    assert done.stderr.count("epoch 2/2") == 1  # rank 0 alone speaks
    known = json.loads((work_dir(project) / "provenance.json").read_text())
    assert known["environment"]["world_size"] == 2
    # 1,000 images over two ranks: the exported weights give the same counts in one process.
    evaluation = smt(project, "evaluate", "imagenet1k_smt_tiny")
    assert f"top1 {pair['metrics']['top1']:.3f}" in evaluation.stdout


def test_a_number_of_processes_that_cannot_keep_the_batch_is_refused(project):
    done = smt(project, "train", "imagenet1k_smt_tiny", ranks=3, check=False)
    assert done.returncode != 0
    assert "smt: error: " in done.stderr
    assert "1, 2" in done.stderr


def test_22k_then_1k_at_two_resolutions(project):
    for experiment in ("imagenet22k_smt_large", "imagenet1k_smt_large_224",
                       "imagenet1k_smt_large_384"):  # fmt: skip
        smt(project, "train", experiment)
    small, large = (metrics(project, f"imagenet1k_smt_large_{size}") for size in (224, 384))
    parent = metrics(project, "imagenet22k_smt_large")
    for child in ("imagenet1k_smt_large_224", "imagenet1k_smt_large_384"):
        known = json.loads((work_dir(project, child) / "provenance.json").read_text())
        assert known["parent"]["weights_sha256"] == parent["weights_sha256"]
        assert known["data"].keys() >= {"imagenet1k", "class_map:imagenet22k_to_1k"}
    assert small["fingerprint"] != large["fingerprint"]


def test_a_missing_and_a_failed_parent_are_told_apart(project):
    done = smt(project, "train", "imagenet1k_smt_large_224", check=False)
    assert done.returncode == 4
    one_line(done, "has not been trained", "smt train imagenet22k_smt_large --seed 0")
    edit_demo(project, lambda demo: demo["recipes"]["imagenet22k"]["optimizer"].update(lr=1e30))
    failed = smt(project, "train", "imagenet22k_smt_large", check=False)
    assert failed.returncode == 4
    one_line(failed, "not finite", "step", "learning rate")
    child = smt(project, "train", "imagenet1k_smt_large_224", check=False)
    assert child.returncode == 4
    one_line(child, "imagenet22k_smt_large-seed0, which failed", "not finite")


def test_a_second_process_on_the_same_run_is_refused(project):
    first = subprocess.Popen(
        command("train", "imagenet1k_smt_tiny"), cwd=project, stderr=subprocess.DEVNULL
    )
    try:
        await_step(run_dir(project), 10, first)
        done = smt(project, "train", "imagenet1k_smt_tiny", check=False)
        assert done.returncode == 4
        one_line(done, f"process {first.pid} on ", "trains this run already")
    finally:
        first.terminate()
        first.wait()


def test_a_full_disk_stops_with_one_line_and_goes_on_afterwards(project, small_disk):
    kept = small_disk / "results" / "demo" / "data"
    kept.mkdir(parents=True)
    for path in (project / "results" / "demo" / "data").glob("imagenet1k.*"):
        shutil.copy(path, kept)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 500_000))
    env = {"SMT_RESULTS": str(small_disk / "results")}
    done = smt(project, "train", "imagenet1k_smt_tiny", check=False, env=env)
    assert done.returncode == 4
    one_line(done, "the disk is full", str(small_disk))
    ballast.unlink()
    smt(project, "train", "imagenet1k_smt_tiny", env=env)


def test_no_permission_to_write_is_one_line(project, read_only_folder):
    env = {"SMT_RESULTS": str(read_only_folder / "results")}
    done = smt(project, "train", "imagenet1k_smt_tiny", check=False, env=env)
    assert done.returncode != 0
    one_line(done, str(read_only_folder))


def test_two_evaluations_of_a_run_do_not_write_the_same_files(project):
    smt(project, "train", "imagenet1k_smt_tiny")
    with exclusive(run_dir(project), evaluation.LOCK):
        for ranks in (1, 2):
            done = smt(project, "evaluate", "imagenet1k_smt_tiny", ranks=ranks, check=False)
            assert done.returncode != 0
            assert done.stderr.count(f"process {os.getpid()} on ") == 1, done.stderr
            assert "evaluates this run already" in done.stderr
        assert not (run_dir(project) / "evaluation.json").exists()
    smt(project, "evaluate", "imagenet1k_smt_tiny")


def test_changed_weights_are_found_by_evaluation(project):
    smt(project, "train", "imagenet1k_smt_tiny")
    path = run_dir(project) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    done = smt(project, "evaluate", "imagenet1k_smt_tiny", check=False)
    assert done.returncode == 4
    one_line(done, "model.safetensors", "is not the file")


def test_unknown_experiment_and_seed(project):
    done = smt(project, "train", "imagenet1k_smt_tinny", check=False)
    assert done.returncode == 2
    one_line(done, "imagenet1k_smt_tinny", "did you mean imagenet1k_smt_tiny")
    done = smt(project, "train", "imagenet1k_smt_tiny", "--seed", "-1", check=False)
    assert done.returncode == 2
    one_line(done, "--seed -1", "valid: 0 to")


def test_the_demo_smt_tiny_reaches_93_percent_on_held_out_digits(project):
    shutil.copytree(ROOT / "params", project / "params", dirs_exist_ok=True)
    smt(project, "train", "imagenet1k_smt_tiny")
    said = metrics(project)
    assert said["epochs"] == 6
    assert said["metrics"]["top1"] >= 93
