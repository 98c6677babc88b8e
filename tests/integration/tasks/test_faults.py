"""Faults of a training, caused for real: signals, kills, damaged files, changed inputs."""

import json
import shutil
import signal
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from smt.runs.checkpoint_files import CheckpointName, checkpoints_in
from testbed.waiting import wait_for
from tests.helpers import ROOT, pause
from tests.helpers.debian import require
from tests.helpers.ranks import process_of, start_ranks
from tests.helpers.trainings import (
    RUN_OF_DEMO,
    STEPS,
    command,
    copy_project,
    edit_demo,
    exit_codes,
    metrics,
    one_line,
    outcome,
    output_of,
    provenance,
    run_dir,
    smt,
    start,
    stop_at,
    weights,
    work_dir,
)

RUN = RUN_OF_DEMO


def start_training(project, ranks, *options, log="try", prepare=()):
    """Start several ranks of the run."""
    return start_ranks(project, ranks, "train", RUN, *options, log=log, prepare=prepare)


def finish_training(project, ranks):
    with closing(start_training(project, ranks)) as attempt:
        assert exit_codes(attempt) == [0] * ranks, attempt.last_message()


def await_pause(attempt, rank=0):
    pause.await_stop(process_of(attempt, rank), attempt.last_message)


def send(attempt, number, rank):
    """Send a signal to a rank that is paused at its step, and resume it."""
    pause.send(process_of(attempt, rank), number)


# --- signals -------------------------------------------------------------------------------------


def test_a_stop_signal_loses_no_step(small_project, undisturbed):
    """Four times, each by another signal that asks a job to end."""
    steps = (3, 8, 14, 19)
    for step, number in zip(
        steps, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2), strict=True
    ):
        assert stop_at(small_project, step, "--workers", "1", number=number) == 75, number
        assert "state saved" in output_of(small_project), number
    smt(small_project, "train", RUN)
    attempts = [attempt["resumed_at_step"] for attempt in provenance(small_project)["attempts"]]
    assert all(resumed >= stopped for resumed, stopped in zip(attempts, (0, *steps), strict=True))
    assert attempts == sorted(set(attempts)) and attempts[-1] < STEPS
    assert outcome(small_project) == undisturbed


def test_a_stop_signal_before_the_first_step_ends_at_once(small_project):
    """As rank 0 of two, which waits inside torch for the other one."""
    with closing(start_training(small_project, 2)) as attempt:
        process_of(attempt, 1).kill()
        process = psutil.Process(process_of(attempt, 0).pid)
        wait_for(
            lambda: [c for c in process.net_connections() if c.status == "LISTEN"],
            attempt.last_message,
        )
        assert attempt.poll() is None
        attempt.kill(signal.SIGTERM, 0)
        # It would wait for the other one for half an hour, and `ended` waits for ten minutes.
        assert exit_codes(attempt) == [75, -signal.SIGKILL]


def test_a_stop_signal_during_imports_exits_as_resumable(small_project):
    arguments = {"cwd": small_project, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command("train", RUN), **arguments) as process:
        bit = 1 << (signal.SIGUSR2 - 1)
        status = Path(f"/proc/{process.pid}/status")

        def has_handlers():
            with status.open() as file:
                (mask,) = [line.split()[1] for line in file if line.startswith("SigCgt")]
            return int(mask, 16) & bit

        wait_for(has_handlers, every=0.005)
        process.send_signal(signal.SIGUSR2)
        _, errors = process.communicate()
    assert process.returncode == 75, errors


def test_a_killed_training_ends_its_data_workers_and_frees_its_lock(small_project, undisturbed):
    prepare = pause.at_step(5)
    with start(small_project, "train", RUN, "--workers", "2", prepare=prepare) as process:
        pause.await_stop(process, lambda: output_of(small_project))
        workers = psutil.Process(process.pid).children()
        for worker in workers:
            worker.suspend()  # so that they do not end by themselves
        process.kill()
        assert process.wait() == -signal.SIGKILL
    smt(small_project, "train", RUN)
    assert outcome(small_project) == undisturbed
    assert len(workers) == 2
    wait_for(lambda: not any(map(is_alive, workers)), lambda: f"{workers}")


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


# --- several processes ---------------------------------------------------------------------------


def test_four_processes_resume_to_the_same_bytes(small_project, tmp_path):
    """With more than two, the order of the gradients' sum matters."""
    edit_demo(small_project, lambda demo: demo["recipes"]["*"].update(device_batch=2))
    other = copy_project(small_project, tmp_path / "other")
    finish_training(small_project, 4)
    with closing(start_training(other, 4, prepare=pause.at_step(13, rank=2))) as attempt:
        await_pause(attempt, 2)
        send(attempt, signal.SIGTERM, 2)
        assert exit_codes(attempt) == [75, 75, 75, 75]
    finish_training(other, 4)
    assert 13 <= provenance(other)["attempts"][1]["resumed_at_step"] < STEPS
    assert outcome(other) == outcome(small_project)


def test_when_one_process_is_killed_the_others_exit_as_resumable(small_project, undisturbed_pair):
    options = ("--checkpoint-steps", "3")
    with closing(
        start_training(small_project, 2, *options, prepare=pause.at_step(11, rank=1))
    ) as attempt:
        await_pause(attempt, 1)
        process_of(attempt, 1).kill()
        assert exit_codes(attempt) == [75, -signal.SIGKILL]
        assert "rank 0 of 2 lost the connection to another" in attempt.last_message()
    finish_training(small_project, 2)
    assert 6 <= provenance(small_project)["attempts"][1]["resumed_at_step"] <= 11
    assert outcome(small_project) == undisturbed_pair


def test_a_second_start_of_several_processes_is_refused_once(small_project):
    with closing(start_training(small_project, 2, prepare=pause.at_step(5))) as attempt:
        await_pause(attempt)
        with closing(start_training(small_project, 2, log="second")) as second:
            assert exit_codes(second) == [4, 4]
            assert "trains this run already" in second.last_message()
    assert output_of(small_project, "second-rank1") == ""


def test_when_one_process_fails_the_others_end_with_its_exit_code(small_project):
    images = (small_project / "data").resolve()
    (small_project / "data").unlink()
    shutil.copytree(images, small_project / "data")
    train = small_project / "data/demo/imagenet1k/train"
    sorted(train.rglob("*.JPEG"))[7].write_bytes(b"no image")
    with closing(start_training(small_project, 2)) as attempt:
        assert exit_codes(attempt) == [3, 3]
    texts = [output_of(small_project, f"try-rank{rank}") for rank in range(2)]
    assert sorted(text.count("cannot read image") for text in texts) == [0, 1]
    assert not any("Traceback" in text for text in texts)


def test_another_number_of_processes_resumes_with_a_warning(stopped):
    finish_training(stopped, 2)
    text = output_of(stopped, "try-rank0")
    assert "2 processes instead of 1" in text and "sums are added in another order" in text
    assert metrics(stopped)["steps"] == STEPS
    worlds = [attempt["environment"]["world_size"] for attempt in provenance(stopped)["attempts"]]
    assert worlds == [1, 2]


def test_a_hanging_process_logs_its_stacks_and_ends_in_minutes(small_project):
    options, prepare = ("--stall-minutes", "0.1"), pause.at_step(5, rank=1)
    with closing(start_training(small_project, 2, *options, prepare=prepare)) as attempt:
        await_pause(attempt, 1)
        path = work_dir(small_project) / "stacks-rank0.txt"
        wait_for(
            lambda: path.exists() and "end of the stacks of rank 0" in path.read_text(),
            attempt.last_message,
        )
        process_of(attempt, 1).send_signal(signal.SIGCONT)
        assert exit_codes(attempt) == [75, 75]
    stacks = path.read_text()
    assert "stacks of rank 0" in stacks and "trainer.py" in stacks
    finish_training(small_project, 2)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(killed, undisturbed, damage):
    newest, before = checkpoints_in(work_dir(killed) / "checkpoints")[:2]
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content[:-100] if damage == "cut" else content)
    listing = smt(killed, "checkpoint", str(work_dir(killed)), check=False)
    assert listing.returncode == 3 and listing.stdout.count("DAMAGED") == 1
    result = smt(killed, "train", RUN)
    assert f"{newest.name} is damaged" in result.stderr and "trying the one before" in result.stderr
    assert provenance(killed)["attempts"][1]["resumed_at_step"] == CheckpointName.of(before).step
    assert outcome(killed) == undisturbed


def test_a_journal_ahead_of_the_checkpoint_is_truncated(killed, undisturbed):
    journal = work_dir(killed) / "journal.jsonl"
    newest = CheckpointName.of(checkpoints_in(work_dir(killed) / "checkpoints")[0])
    assert json.loads(journal.read_text().splitlines()[-1])["step"] > newest.step
    with journal.open("ab") as file:
        file.write(b'{"step": 9999, "epo')
    smt(killed, "train", RUN)
    assert outcome(killed) == undisturbed


def test_a_read_only_results_folder_is_one_line_and_the_run_resumes_later(
    stopped, undisturbed, small_disk
):
    shutil.move(stopped / "results", small_disk / "results")
    (stopped / "results").symlink_to(small_disk / "results")
    env = {"SMT_RESULTS": str(small_disk / "results")}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    result = smt(stopped, "train", RUN, check=False, env=env)
    assert result.returncode == 2
    one_line(result, str(small_disk), "give a folder that can be written")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    smt(stopped, "train", RUN, env=env)
    assert outcome(stopped) == undisturbed


def test_a_run_resumes_after_the_disk_was_full(small_project, undisturbed, small_disk):
    shutil.move(small_project / "results", small_disk / "results")
    (small_project / "results").symlink_to(small_disk / "results")
    padding = shutil.disk_usage(small_disk).free - 4_500_000  # leaves room for three checkpoints
    (small_disk / "spare").write_bytes(b"0" * padding)
    options, prepare = ("--checkpoint-steps", "2"), pause.at_step(9)
    with start(small_project, "train", RUN, *options, prepare=prepare) as process:
        pause.await_stop(process, lambda: output_of(small_project))
        with (small_disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"0" * 4096):
                pass
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 4, output_of(small_project)
    text = output_of(small_project)
    # The warning before the error: the last two, the best, one in writing, and two milestones.
    assert "free, less than 6 checkpoints take" in text
    assert "the disk is full" in text.strip().splitlines()[-1]
    for name in ("ballast", "spare"):
        (small_disk / name).unlink()
    smt(small_project, "train", RUN)
    assert outcome(small_project) == undisturbed


def test_a_clock_that_is_set_back_changes_no_result(stopped, undisturbed):
    """A new process, too, resumes where a fork has stopped."""
    result = subprocess.run(
        [require("faketime"), "-f", "-400d", *command("train", RUN)], cwd=stopped,
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    attempts = provenance(stopped)["attempts"]
    assert attempts[1]["started"] < attempts[0]["started"] - 300 * 86400  # it was set back
    assert outcome(stopped) == undisturbed
    assert 0 < metrics(stopped)["wall_seconds"] < 600


# --- changes to an unfinished run ----------------------------------------------------------------


@pytest.fixture
def copied_code(stopped):
    """The stopped run with a copy of the code, and an environment that runs the copy."""
    for name in ("smt", "params"):
        shutil.copytree(ROOT / name, stopped / "code" / name)
    return stopped, {"PYTHONPATH": str(stopped / "code")}


def edit_code(project, file, old, new):
    path = project / "code" / "smt" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_changed_code_is_refused_unless_allowed(copied_code):
    project, env = copied_code
    edit_code(project, "engine/optim.py", "betas=optimizer.betas", "betas=(0.9, 0.95)")
    before = [path.name for path in checkpoints_in(work_dir(project) / "checkpoints")]
    result = smt(project, "train", RUN, check=False, env=env)
    assert result.returncode == 4
    one_line(result, "smt/engine/optim.py has changed", "restore that code", "--allow-change")
    assert [path.name for path in checkpoints_in(work_dir(project) / "checkpoints")] == before
    smt(project, "train", RUN, "--allow-change", env=env)
    expected = ["smt/engine/optim.py has changed"]
    assert provenance(project)["attempts"][1]["changes"] == expected
    assert metrics(project)["changes"] == expected


TRAINING_CODE = {
    "config": "config/models.py", "data": "data/sampler.py", "models": "models/blocks.py",
    "detection": "detection/losses.py", "segmentation": "segmentation/upernet.py",
    "evaluation": "evaluation/semantic.py", "engine": "engine/optim.py",
    "tasks": "tasks/segment.py",
}  # fmt: skip
"""A module of each folder whose code can change a result."""


def test_changed_code_in_any_training_folder_is_refused(copied_code):
    project, env = copied_code
    for file in TRAINING_CODE.values():
        path = project / "code" / "smt" / file
        path.write_text(path.read_text() + "\n\nEDITED = True\n")
    result = smt(project, "train", RUN, check=False, env=env)
    assert result.returncode == 4
    first = sorted(TRAINING_CODE.values())[:6]
    one_line(result, *(f"smt/{file} has changed" for file in first), "and 2 more")


def test_changed_comments_and_docstrings_are_allowed(copied_code, undisturbed):
    project, env = copied_code
    edit_code(
        project, "engine/optim.py", '"""Optimizer', '# A remark.\n"""Another word on Optimizer'
    )
    smt(project, "train", RUN, env=env)
    assert metrics(project)["changes"] == []
    assert outcome(project) == undisturbed


def test_changed_params_are_refused_and_restored_params_resume(stopped, undisturbed):
    first = work_dir(stopped)
    edit_demo(stopped, lambda demo: demo["recipes"]["imagenet1k"]["optimizer"].update(lr=3e-3))
    result = smt(stopped, "train", RUN, check=False)
    assert result.returncode == 4
    one_line(result, "unfinished, at step", "recipe.optimizer.lr 0.002 -> 0.003", "--allow-change")
    assert (run_dir(stopped) / first.name / "checkpoints").is_dir()
    edit_demo(stopped, lambda demo: demo["recipes"]["imagenet1k"]["optimizer"].update(lr=2e-3))
    smt(stopped, "train", RUN)
    journal = (first / "journal.jsonl").read_bytes()
    assert (weights(stopped), journal) == undisturbed


def test_changed_data_are_refused_by_their_digest(
    stopped,
):
    digest = provenance(stopped)["data"]["imagenet1k"]
    images = (stopped / "data").resolve()
    (stopped / "data").unlink()
    shutil.copytree(images, stopped / "data")
    image = sorted((stopped / "data/demo/imagenet1k/val").rglob("*.JPEG"))[0]
    image.write_bytes(image.read_bytes() + b"mended")
    result = smt(stopped, "train", RUN, check=False)
    assert result.returncode == 3
    one_line(result, image.name, "when its manifest was made", "run smt data manifest imagenet1k")
    smt(stopped, "data", "manifest", "imagenet1k", "--scale", "demo")
    result = smt(stopped, "train", RUN, check=False)
    assert result.returncode == 4
    one_line(result, "unfinished, at step", f"with other params: data {digest[:12]} -> ")


def test_allow_change_restarts_a_run_with_changed_params(stopped):
    first = work_dir(stopped)
    edit_demo(stopped, lambda demo: demo["recipes"]["imagenet1k"]["optimizer"].update(lr=3e-3))
    result = smt(stopped, "train", RUN, env={"SMT_ALLOW_CHANGE": "1"})
    assert (
        f"starts again; results/demo/runs/{RUN}/seed0/{first.name} stays as it was" in result.stderr
    )
    given_up = json.loads((first / "provenance.json").read_text())["given_up"]
    assert given_up["for"] == metrics(stopped)["fingerprint"]
    assert len(list((first / "checkpoints").iterdir())) >= 1
    (second,) = [path for path in run_dir(stopped).glob("work-*") if path != first]
    attempts = json.loads((second / "provenance.json").read_text())["attempts"]
    assert [attempt["resumed_at_step"] for attempt in attempts] == [0]
