"""What hurts a training, done to it for real: signals, kills, damage, changes under its feet."""

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
    ended,
    metrics,
    one_line,
    outcome,
    provenance,
    run_dir,
    said,
    smt,
    start,
    stop_at,
    weights,
    work_dir,
)

RUN = RUN_OF_DEMO


def train_on(project, ranks, *options, log="try", prepare=()):
    """Start several ranks of the run."""
    return start_ranks(project, ranks, "train", RUN, *options, log=log, prepare=prepare)


def go_on(project, ranks):
    with closing(train_on(project, ranks)) as attempt:
        assert ended(attempt) == [0] * ranks, attempt.last_message()


def await_pause(attempt, rank=0):
    pause.await_stop(process_of(attempt, rank), attempt.last_message)


def send(attempt, number, rank):
    """Send a signal to a rank that has stopped at its step, and let it go on with that."""
    pause.send(process_of(attempt, rank), number)


# --- signals -------------------------------------------------------------------------------------


def test_told_to_stop_it_loses_no_step(small_project, undisturbed):
    """Four times, each by another signal that asks a job to end."""
    steps = (3, 8, 14, 19)
    for step, number in zip(
        steps, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2), strict=True
    ):
        assert stop_at(small_project, step, "--workers", "1", number=number) == 75, number
        assert "state saved" in said(small_project), number
    smt(small_project, "train", RUN)
    attempts = [each["resumed_at_step"] for each in provenance(small_project)["attempts"]]
    assert all(resumed >= done for resumed, done in zip(attempts, (0, *steps), strict=True))
    assert attempts == sorted(set(attempts)) and attempts[-1] < STEPS
    assert outcome(small_project) == undisturbed


def test_told_to_stop_before_there_is_anything_to_save_it_ends_at_once(small_project):
    """As rank 0 of two, which waits inside torch for the other one."""
    with closing(train_on(small_project, 2)) as attempt:
        process_of(attempt, 1).kill()
        process = psutil.Process(process_of(attempt, 0).pid)
        wait_for(lambda: [each for each in process.net_connections() if each.status == "LISTEN"],
                 attempt.last_message)  # fmt: skip
        assert attempt.poll() is None
        attempt.kill(signal.SIGTERM, 0)
        # It would wait for the other one for half an hour, and `ended` waits for ten minutes.
        assert ended(attempt) == [75, -signal.SIGKILL]


def test_told_to_stop_while_torch_is_imported_it_ends_as_one_that_can_go_on(small_project):
    arguments = {"cwd": small_project, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command("train", RUN), **arguments) as process:
        caught = 1 << (signal.SIGUSR2 - 1)
        status = Path(f"/proc/{process.pid}/status")

        def has_handlers():
            with status.open() as file:
                (mask,) = [line.split()[1] for line in file if line.startswith("SigCgt")]
            return int(mask, 16) & caught

        wait_for(has_handlers, every=0.005)
        process.send_signal(signal.SIGUSR2)
        _, errors = process.communicate()
    assert process.returncode == 75, errors


def test_the_workers_of_a_killed_training_end_with_it_and_its_lock_is_free(
    small_project, undisturbed
):
    prepare = pause.at_step(5)
    with start(small_project, "train", RUN, "--workers", "2", prepare=prepare) as process:
        pause.await_stop(process, lambda: said(small_project))
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


def test_four_processes_go_on_to_the_same_bytes(small_project, tmp_path):
    """With more than two, the order in which gradients are added up comes into it."""
    edit_demo(small_project, lambda demo: demo["recipes"]["*"].update(device_batch=2))
    other = copy_project(small_project, tmp_path / "other")
    go_on(small_project, 4)
    with closing(train_on(other, 4, prepare=pause.at_step(13, rank=2))) as attempt:
        await_pause(attempt, 2)
        send(attempt, signal.SIGTERM, 2)
        assert ended(attempt) == [75, 75, 75, 75]
    go_on(other, 4)
    assert 13 <= provenance(other)["attempts"][1]["resumed_at_step"] < STEPS
    assert outcome(other) == outcome(small_project)


def test_when_one_process_is_killed_the_others_end_as_ones_that_can_go_on(
    small_project, undisturbed_pair
):
    options = ("--checkpoint-steps", "3")
    with closing(
        train_on(small_project, 2, *options, prepare=pause.at_step(11, rank=1))
    ) as attempt:
        await_pause(attempt, 1)
        process_of(attempt, 1).kill()
        assert ended(attempt) == [75, -signal.SIGKILL]
        assert "rank 0 of 2 lost the connection to another" in attempt.last_message()
    go_on(small_project, 2)
    assert 6 <= provenance(small_project)["attempts"][1]["resumed_at_step"] <= 11
    assert outcome(small_project) == undisturbed_pair


def test_a_second_start_of_several_processes_is_refused_once(small_project):
    with closing(train_on(small_project, 2, prepare=pause.at_step(5))) as attempt:
        await_pause(attempt)
        with closing(train_on(small_project, 2, log="second")) as second:
            assert ended(second) == [4, 4]
            assert "trains this run already" in second.last_message()
    assert said(small_project, "second-rank1") == ""


def test_when_one_process_fails_the_others_end_with_its_exit_code(small_project):
    images = (small_project / "data").resolve()
    (small_project / "data").unlink()
    shutil.copytree(images, small_project / "data")
    train = small_project / "data/demo/imagenet1k/train"
    sorted(train.rglob("*.JPEG"))[7].write_bytes(b"no image")
    with closing(train_on(small_project, 2)) as attempt:
        assert ended(attempt) == [3, 3]
    texts = [said(small_project, f"try-rank{rank}") for rank in range(2)]
    assert sorted(text.count("cannot read image") for text in texts) == [0, 1]
    assert not any("Traceback" in text for text in texts)


def test_another_number_of_processes_goes_on_and_says_what_that_means(stopped):
    go_on(stopped, 2)
    text = said(stopped, "try-rank0")
    assert "2 processes instead of 1" in text and "sums are added in another order" in text
    assert metrics(stopped)["steps"] == STEPS
    worlds = [each["environment"]["world_size"] for each in provenance(stopped)["attempts"]]
    assert worlds == [1, 2]


def test_a_process_that_hangs_is_shown_in_the_log_and_costs_minutes_not_days(small_project):
    options, prepare = ("--stall-minutes", "0.1"), pause.at_step(5, rank=1)
    with closing(train_on(small_project, 2, *options, prepare=prepare)) as attempt:
        await_pause(attempt, 1)
        log = work_dir(small_project) / "train.log"
        wait_for(lambda: "end of the stacks of rank 0" in log.read_text(), attempt.last_message)
        process_of(attempt, 1).send_signal(signal.SIGCONT)
        assert ended(attempt) == [75, 75]
    stacks = log.read_text()
    assert "stacks of rank 0" in stacks and "trainer.py" in stacks
    go_on(small_project, 2)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(killed, undisturbed, damage):
    newest, before = checkpoints_in(work_dir(killed) / "checkpoints")[:2]
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content[:-100] if damage == "cut" else content)
    told = smt(killed, "checkpoint", str(work_dir(killed)), check=False)
    assert told.returncode == 3 and told.stdout.count("DAMAGED") == 1
    done = smt(killed, "train", RUN)
    assert f"{newest.name} is damaged" in done.stderr and "trying the one before" in done.stderr
    assert provenance(killed)["attempts"][1]["resumed_at_step"] == CheckpointName.of(before).step
    assert outcome(killed) == undisturbed


def test_a_journal_that_ran_ahead_or_was_torn_is_cut_back(killed, undisturbed):
    journal = work_dir(killed) / "journal.jsonl"
    newest = CheckpointName.of(checkpoints_in(work_dir(killed) / "checkpoints")[0])
    assert json.loads(journal.read_text().splitlines()[-1])["step"] > newest.step
    with journal.open("ab") as file:
        file.write(b'{"step": 9999, "epo')
    smt(killed, "train", RUN)
    assert outcome(killed) == undisturbed


def test_a_run_whose_folder_becomes_read_only_is_one_line_and_goes_on_later(
    stopped, undisturbed, small_disk
):
    shutil.move(stopped / "results", small_disk / "results")
    (stopped / "results").symlink_to(small_disk / "results")
    env = {"SMT_RESULTS": str(small_disk / "results")}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = smt(stopped, "train", RUN, check=False, env=env)
    assert done.returncode == 2
    one_line(done, str(small_disk), "give a folder that can be written")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    smt(stopped, "train", RUN, env=env)
    assert outcome(stopped) == undisturbed


def test_a_disk_that_fills_while_training_costs_nothing_but_the_wait(
    small_project, undisturbed, small_disk
):
    shutil.move(small_project / "results", small_disk / "results")
    (small_project / "results").symlink_to(small_disk / "results")
    spare = shutil.disk_usage(small_disk).free - 4_500_000  # leaves room for three checkpoints
    (small_disk / "spare").write_bytes(b"0" * spare)
    options, prepare = ("--checkpoint-steps", "2"), pause.at_step(9)
    with start(small_project, "train", RUN, *options, prepare=prepare) as process:
        pause.await_stop(process, lambda: said(small_project))
        with (small_disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"0" * 4096):
                pass
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 4, said(small_project)
    text = said(small_project)
    assert "free, less than 4 checkpoints take" in text  # a word before it happened
    assert "the disk is full" in text.strip().splitlines()[-1]
    for name in ("ballast", "spare"):
        (small_disk / name).unlink()
    smt(small_project, "train", RUN)
    assert outcome(small_project) == undisturbed


def test_a_clock_that_is_set_back_changes_nothing(stopped, undisturbed):
    """A process from nothing, too, goes on where a fork has stopped."""
    done = subprocess.run(
        [require("faketime"), "-f", "-400d", *command("train", RUN)], cwd=stopped,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    attempts = provenance(stopped)["attempts"]
    assert attempts[1]["started"] < attempts[0]["started"] - 300 * 86400  # it was set back
    assert outcome(stopped) == undisturbed
    assert 0 < metrics(stopped)["wall_seconds"] < 600


# --- changes under a half-done run ---------------------------------------------------------------


@pytest.fixture
def own_code(stopped):
    """The stopped run with a copy of the code, and the environment in which that is what runs."""
    for name in ("smt", "params"):
        shutil.copytree(ROOT / name, stopped / "code" / name)
    return stopped, {"PYTHONPATH": str(stopped / "code")}


def edit_code(project, file, old, new):
    path = project / "code" / "smt" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_other_code_is_refused_with_what_has_changed_unless_allowed(own_code):
    project, env = own_code
    edit_code(project, "engine/optim.py", "betas=optimizer.betas", "betas=(0.9, 0.95)")
    before = [path.name for path in checkpoints_in(work_dir(project) / "checkpoints")]
    done = smt(project, "train", RUN, check=False, env=env)
    assert done.returncode == 4
    one_line(done, "smt/engine/optim.py has changed", "restore that code", "--allow-change")
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


def test_one_changed_line_in_any_folder_of_training_code_is_refused(own_code):
    project, env = own_code
    for file in TRAINING_CODE.values():
        path = project / "code" / "smt" / file
        path.write_text(path.read_text() + "\n\nEDITED = True\n")
    done = smt(project, "train", RUN, check=False, env=env)
    assert done.returncode == 4
    first = sorted(TRAINING_CODE.values())[:6]
    one_line(done, *(f"smt/{file} has changed" for file in first), "and 2 more")


def test_comments_and_docstrings_may_change(own_code, undisturbed):
    project, env = own_code
    edit_code(
        project, "engine/optim.py", '"""Optimizer', '# A remark.\n"""Another word on Optimizer'
    )
    smt(project, "train", RUN, env=env)
    assert metrics(project)["changes"] == []
    assert outcome(project) == undisturbed


def test_other_params_are_refused_with_the_difference_and_putting_them_back_goes_on(
    stopped, undisturbed
):
    first = work_dir(stopped)
    edit_demo(stopped, lambda demo: demo["recipes"]["imagenet1k"]["optimizer"].update(lr=3e-3))
    done = smt(stopped, "train", RUN, check=False)
    assert done.returncode == 4
    one_line(done, "unfinished, at step", "recipe.optimizer.lr 0.002 -> 0.003", "--allow-change")
    assert (run_dir(stopped) / first.name / "checkpoints").is_dir()
    edit_demo(stopped, lambda demo: demo["recipes"]["imagenet1k"]["optimizer"].update(lr=2e-3))
    smt(stopped, "train", RUN)
    journal = (first / "journal.jsonl").read_bytes()
    assert (weights(stopped), journal) == undisturbed


def test_data_that_were_mended_meanwhile_are_told_of_and_not_finished_under_their_old_digest(
    stopped,
):
    digest = provenance(stopped)["data"]["imagenet1k"]
    images = (stopped / "data").resolve()
    (stopped / "data").unlink()
    shutil.copytree(images, stopped / "data")
    image = sorted((stopped / "data/demo/imagenet1k/val").rglob("*.JPEG"))[0]
    image.write_bytes(image.read_bytes() + b"mended")
    done = smt(stopped, "train", RUN, check=False)
    assert done.returncode == 3
    one_line(done, image.name, "when its manifest was made", "run smt data manifest imagenet1k")
    smt(stopped, "data", "manifest", "imagenet1k", "--scale", "demo")
    done = smt(stopped, "train", RUN, check=False)
    assert done.returncode == 4
    one_line(done, "unfinished, at step", f"with other params: data {digest[:12]} -> ")


def test_with_leave_a_run_begins_anew_with_other_params_and_that_is_recorded(stopped):
    first = work_dir(stopped)
    edit_demo(stopped, lambda demo: demo["recipes"]["imagenet1k"]["optimizer"].update(lr=3e-3))
    done = smt(stopped, "train", RUN, env={"SMT_ALLOW_CHANGE": "1"})
    assert (
        f"starts again; results/demo/runs/{RUN}/seed0/{first.name} stays as it was" in done.stderr
    )
    given_up = json.loads((first / "provenance.json").read_text())["given_up"]
    assert given_up["for"] == metrics(stopped)["fingerprint"]
    assert len(list((first / "checkpoints").iterdir())) >= 1
    (second,) = [path for path in run_dir(stopped).glob("work-*") if path != first]
    attempts = json.loads((second / "provenance.json").read_text())["attempts"]
    assert [each["resumed_at_step"] for each in attempts] == [0]
