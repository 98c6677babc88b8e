"""`smt train` and `smt evaluate` as a user runs them: real data, processes, signals and faults."""

import json
import os
import shutil
import signal
import subprocess

import pytest

from smt.runs.lock import exclusive
from smt.tasks import evaluation
from tests.helpers import ROOT, pause
from tests.helpers.params import project_at
from tests.helpers.trained_fixtures import STDERR
from tests.helpers.trainings import (
    IMAGES,
    RUN_OF_DEMO,
    STEPS,
    command,
    copy_project,
    edit_demo,
    make_project,
    metrics,
    one_line,
    outcome,
    output_of,
    provenance,
    run_dir,
    smt,
    start,
    stop_at,
    work_dir,
)

RUN = RUN_OF_DEMO
VALIDATED = 10 * IMAGES["imagenet1k"]["val"]


@pytest.fixture
def trained_copy(trained, tmp_path):
    """A copy of the small project whose run is done."""
    return copy_project(trained, tmp_path / "done")


def first_record(project):
    return json.loads((work_dir(project) / "journal.jsonl").read_text().splitlines()[0])


def test_a_run_leaves_weights_numbers_and_provenance(trained_copy):
    text = (trained_copy / STDERR).read_text()
    assert "epoch 2/2" in text and "images/s" in text
    numbers = metrics(trained_copy)
    assert numbers["epochs"] == 2 and numbers["steps"] == STEPS
    assert set(numbers["metrics"]) == {"top1", "top5", "loss"}
    record = provenance(trained_copy)
    assert record["fingerprint"] == numbers["fingerprint"]
    assert record["params"]["recipe"]["schedule"]["epochs"] == 2
    assert record["packages"]["torch"] and record["hardware"]["processor"]
    assert record["data"]["imagenet1k"] == json.loads(
        (trained_copy / "results/demo/data/imagenet1k.json").read_text()
    )["digest"]  # fmt: skip

    again = smt(trained_copy, "train", RUN)
    assert "is done" in again.stdout and "epoch" not in again.stderr

    smt(trained_copy, "evaluate", RUN)
    measured = json.loads((run_dir(trained_copy) / "evaluation.json").read_text())
    assert measured["metrics"] == numbers["metrics"] and measured["images"] == VALIDATED


def test_stopped_and_killed_it_resumes_to_the_same_bytes(small_project, undisturbed):
    codes = [
        stop_at(small_project, step, "--checkpoint-minutes", "0.001", number=number)
        for number, step in ((signal.SIGTERM, 4), (signal.SIGKILL, 13), (signal.SIGUSR2, 17))
    ]
    assert codes == [75, -signal.SIGKILL, 75]
    assert "resumes after step" in smt(small_project, "train", RUN).stderr
    assert outcome(small_project) == undisturbed
    attempts = provenance(small_project)["attempts"]
    steps = [attempt["resumed_at_step"] for attempt in attempts]
    assert len(steps) == 4 and steps[0] == 0 and steps == sorted(steps) and steps[-1] >= 17
    # A killed attempt ends at its last heartbeat.
    times = [(attempt["started"], attempt["ended"]) for attempt in attempts]
    assert all(started < end for started, end in times)
    assert [at for pair in times for at in pair] == sorted(at for pair in times for at in pair)
    assert times[-1][1] == metrics(small_project)["finished"]


def test_resumed_with_recomputation_it_ends_with_the_same_bytes(small_project, undisturbed):
    assert stop_at(small_project, 5) == 75
    recipes = small_project / "params" / "recipes.yaml"
    plain = recipes.read_text()
    recipes.write_text(plain.replace("recompute: false", "recompute: sometimes"))
    result = smt(small_project, "train", RUN, check=False)
    one_line(result, "recipes.yaml:", "recipes.imagenet1k.recompute: ", 'found "sometimes"')
    recipes.write_text(plain.replace("recompute: false", "recompute: true"))
    smt(small_project, "train", RUN)
    assert outcome(small_project) == undisturbed
    attempts = provenance(small_project)["attempts"]
    assert [attempt["recompute"] for attempt in attempts] == [False, True]


def test_two_ranks_keep_the_global_batch_and_count_every_image_once(
    small_project, trained, undisturbed_pair
):
    """New processes by `torchrun` give the same bytes as forks."""
    started = subprocess.run(
        command("train", RUN, ranks=2), cwd=small_project, capture_output=True, text=True
    )
    assert started.returncode == 0, started.stderr
    assert outcome(small_project) == undisturbed_pair
    single, pair = metrics(trained), metrics(small_project)
    assert (pair["steps"], pair["images"]) == (single["steps"], single["images"])
    assert pair["fingerprint"] == single["fingerprint"]
    # Same samples, same augmentation, same draws: only the order of sums differs.
    first, record = first_record(trained), first_record(small_project)
    assert record["metrics"]["train/lr"] == first["metrics"]["train/lr"]
    assert record["metrics"]["train/loss"] == pytest.approx(
        first["metrics"]["train/loss"], rel=1e-3
    )
    assert started.stderr.count("epoch 2/2") == 1  # only rank 0 prints
    assert provenance(small_project)["environment"]["world_size"] == 2
    # All images over two ranks: the exported weights give the same counts in one process.
    result = smt(small_project, "evaluate", RUN)
    assert f"top1 {pair['metrics']['top1']:.3f}" in result.stdout


def test_a_number_of_processes_that_cannot_keep_the_batch_is_refused(small_project):
    result = smt(small_project, "train", RUN, ranks=3, check=False)
    assert result.returncode != 0
    assert "smt: error: " in result.stderr
    assert "1, 2" in result.stderr


def test_pretraining_on_22k_and_fine_tuning_at_two_resolutions(small_project):
    for experiment in ("imagenet22k_smt_large", "imagenet1k_smt_large_224",
                       "imagenet1k_smt_large_384"):  # fmt: skip
        smt(small_project, "train", experiment)
    small, large = (metrics(small_project, f"imagenet1k_smt_large_{size}") for size in (224, 384))
    parent = metrics(small_project, "imagenet22k_smt_large")
    for child in ("imagenet1k_smt_large_224", "imagenet1k_smt_large_384"):
        record = provenance(small_project, child)
        assert record["parent"]["weights_sha256"] == parent["weights_sha256"]
        assert record["data"].keys() >= {"imagenet1k", "class_map:imagenet22k_to_1k"}
    assert small["fingerprint"] != large["fingerprint"]


def test_a_missing_and_a_failed_parent_have_different_messages(small_project):
    missing = smt(small_project, "train", "imagenet1k_smt_large_224", check=False)
    assert missing.returncode == 4
    one_line(missing, "has not been trained", "smt train imagenet22k_smt_large --seed 0")
    edit_demo(
        small_project,
        lambda demo: (
            demo["recipes"]["imagenet22k"]["optimizer"].update(lr=1e30),
            # 25 steps: more than its guard leaves out
            demo["recipes"]["imagenet22k"].update(global_batch=8, device_batch=8),
        ),
    )
    failed = smt(small_project, "train", "imagenet22k_smt_large", check=False)
    assert failed.returncode == 4
    one_line(failed, "not finite", "step", "learning rate")
    child = smt(small_project, "train", "imagenet1k_smt_large_224", check=False)
    assert child.returncode == 4
    one_line(child, "imagenet22k_smt_large-seed0, which failed", "not finite")


def test_a_second_process_on_the_same_run_is_refused(small_project):
    with start(small_project, "train", RUN, prepare=pause.at_step(3)) as first:
        pause.await_stop(first, lambda: output_of(small_project))
        second = smt(small_project, "train", RUN, check=False)
        assert second.returncode == 4
        one_line(second, f"process {first.pid} on ", "trains this run already")


def test_a_full_disk_is_one_line_and_the_run_resumes(small_project, small_disk, undisturbed):
    shutil.move(small_project / "results", small_disk / "results")
    (small_project / "results").symlink_to(small_disk / "results")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 500_000))
    env = {"SMT_RESULTS": str(small_disk / "results")}
    full = smt(small_project, "train", RUN, check=False, env=env)
    assert full.returncode == 4
    one_line(full, "the disk is full", str(small_disk))
    ballast.unlink()
    smt(small_project, "train", RUN, env=env)
    assert outcome(small_project) == undisturbed


def test_gpus_that_torch_cannot_use_are_one_line(small_project):
    """SLURM granted a GPU and there is none: the training does not fall back to the CPU."""
    edit_demo(small_project, lambda demo: demo["recipes"]["imagenet1k"].update(precision="fp16"))
    granted = {"SLURM_JOB_GPUS": "0"}
    result = smt(small_project, "train", RUN, check=False, env=granted)
    assert result.returncode == 2
    one_line(result, "SLURM_JOB_GPUS=0", "can use none of them", "nvidia-smi")
    assert not list(small_project.glob("results/demo/runs/**/work-*"))


def test_no_permission_to_write_is_one_line(small_project, read_only_folder):
    env = {"SMT_RESULTS": str(read_only_folder / "results")}
    result = smt(small_project, "train", RUN, check=False, env=env)
    assert result.returncode != 0
    one_line(result, str(read_only_folder))


def test_two_evaluations_of_a_run_do_not_write_the_same_files(trained_copy):
    with exclusive(run_dir(trained_copy), evaluation.LOCK):
        for ranks in (1, 2):
            result = smt(trained_copy, "evaluate", RUN, ranks=ranks, check=False)
            assert result.returncode != 0
            assert result.stderr.count(f"process {os.getpid()} on ") == 1, result.stderr
            assert "evaluates this run already" in result.stderr
        assert not (run_dir(trained_copy) / "evaluation.json").exists()
    smt(trained_copy, "evaluate", RUN)


def test_changed_weights_are_refused_by_evaluation(trained_copy):
    path = run_dir(trained_copy) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    result = smt(trained_copy, "evaluate", RUN, check=False)
    assert result.returncode == 4
    one_line(result, "model.safetensors", "is not the file")


def test_unknown_experiment_and_seed(small_project):
    result = smt(small_project, "train", "imagenet1k_smt_tinny", check=False)
    assert result.returncode == 2
    one_line(result, "imagenet1k_smt_tinny", "did you mean imagenet1k_smt_tiny")
    result = smt(small_project, "train", RUN, "--seed", "-1", check=False)
    assert result.returncode == 2
    one_line(result, "--seed -1", "valid: 0 to")


@pytest.mark.slow
def test_the_demo_smt_tiny_reaches_93_percent_on_held_out_digits(tmp_path, demo_data):
    project = make_project(tmp_path, demo_data)
    shutil.copytree(ROOT / "params", project / "params", dirs_exist_ok=True)
    smt(project, "train", RUN)
    numbers, demo = metrics(project), project_at("demo")
    assert numbers["epochs"] == demo.recipes["imagenet1k"].schedule.epochs
    assert numbers["metrics"]["top1"] >= 93
