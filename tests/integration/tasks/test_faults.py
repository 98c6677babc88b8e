"""What hurts a training, done to it for real: signals, kills, damage, changes under its feet."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import pytest

from smt.engine import checkpoint
from smt.proof.launch import LocalLauncher
from smt.tracking import pulse
from tests.helpers import ROOT
from tests.helpers.trainings import (
    RUN_OF_DEMO,
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
from tests.helpers.waiting import wait_for

RUN = RUN_OF_DEMO


@pytest.fixture
def project(tmp_path, demo_data):
    return make_project(tmp_path, demo_data)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, demo_data):
    """Weights and journal of the run of `project`, left alone."""
    folder = make_project(tmp_path_factory.mktemp("undisturbed"), demo_data)
    smt(folder, "train", RUN)
    return outcome(folder)


def outcome(project):
    return weights(project), (work_dir(project) / "journal.jsonl").read_bytes()


def provenance(project):
    return json.loads((work_dir(project) / "provenance.json").read_text())


def start(project, *options, env=None):
    return subprocess.Popen(
        command("train", RUN, *options), cwd=project, env={**os.environ, **(env or {})},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def stop_at(project, step, *options, number=signal.SIGTERM, env=None):
    """Train until `step`, send the signal, and return the exit code."""
    process = start(project, *options, env=env)
    await_step(run_dir(project), step, process)
    process.send_signal(number)
    process.communicate()
    return process.returncode


def start_ranks(project, ranks, *options, log="try"):
    """Start several ranks of the run, each a process of this machine."""
    arguments = ["--params", project / "params", "--results", project / "results",
                 "--data", project / "data", "train", RUN, "--scale", "demo", *options]  # fmt: skip
    return LocalLauncher().start([str(each) for each in arguments], ranks, project / "logs" / log)


def ended(attempt):
    return wait_for(attempt.poll, attempt.said, every=0.02)


def await_pulse(project, step, attempt):
    def is_reached():
        assert attempt.poll() is None, f"step {step} was not reached: {attempt.said()}"
        beats = [pulse.read(folder) for folder in run_dir(project).glob("work-*")]
        return any(beat is not None and beat.step >= step for beat in beats)

    wait_for(is_reached, attempt.said, every=0.005)


# --- signals -------------------------------------------------------------------------------------


def test_told_to_stop_it_loses_no_step(project, undisturbed):
    """Four times, each by another signal that asks a job to end."""
    resumed_at = [0]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        process = start(project, "--workers", "1")
        await_step(run_dir(project), resumed_at[-1] + 10, process)
        done = pulse.read(work_dir(project)).step
        process.send_signal(number)
        _, said = process.communicate()
        assert process.returncode == 75 and "state saved" in said, number
        resumed_at.append(done)
    smt(project, "train", RUN)
    attempts = [each["resumed_at_step"] for each in provenance(project)["attempts"]]
    assert all(step >= done for step, done in zip(attempts, resumed_at, strict=True))
    assert attempts == sorted(set(attempts)) and attempts[-1] < 124
    assert outcome(project) == undisturbed


def test_told_to_stop_before_there_is_anything_to_save_it_ends_at_once(project):
    attempt = start_ranks(project, 2)
    attempt.kill(signal.SIGKILL, 1)  # the other waits for it, inside torch
    time.sleep(8)
    assert attempt.poll() is None
    attempt.kill(signal.SIGTERM, 0)
    started = time.monotonic()
    assert ended(attempt) == [75, -signal.SIGKILL]
    assert time.monotonic() - started < 60  # an hour, were it to wait for the other


def test_the_lock_of_a_killed_training_is_free_though_its_workers_live_on(project, undisturbed):
    assert stop_at(project, 30, "--workers", "2", number=signal.SIGKILL) == -signal.SIGKILL
    smt(project, "train", RUN)
    assert outcome(project) == undisturbed


# --- several processes ---------------------------------------------------------------------------


@pytest.fixture
def four_chunks(project):
    """The project with a recipe that 1, 2 or 4 processes can share."""
    edit_demo(project, lambda demo: demo["recipes"]["*"].update(device_batch=16))
    return project


def test_four_processes_go_on_to_the_same_bytes(four_chunks):
    """With more than two, the order in which gradients are added up comes into it."""
    assert ended(start_ranks(four_chunks, 4)) == [0, 0, 0, 0]
    expected = outcome(four_chunks)
    shutil.rmtree(run_dir(four_chunks))
    attempt = start_ranks(four_chunks, 4)
    await_pulse(four_chunks, 70, attempt)
    attempt.kill(signal.SIGTERM, 2)
    assert ended(attempt) == [75, 75, 75, 75]
    assert ended(start_ranks(four_chunks, 4)) == [0, 0, 0, 0]
    assert outcome(four_chunks) == expected


def test_when_one_process_is_killed_the_others_end_as_ones_that_can_go_on(project):
    assert ended(start_ranks(project, 2)) == [0, 0]
    expected = outcome(project)
    shutil.rmtree(run_dir(project))
    attempt = start_ranks(project, 2, "--checkpoint-steps", "10")
    await_pulse(project, 50, attempt)
    attempt.kill(signal.SIGKILL, 1)
    assert ended(attempt) == [75, -signal.SIGKILL]
    assert "rank 0 of 2 lost touch with another" in attempt.said()
    assert ended(start_ranks(project, 2)) == [0, 0]
    assert provenance(project)["attempts"][1]["resumed_at_step"] >= 40
    assert outcome(project) == expected


def test_a_second_start_of_several_processes_is_refused_once(project):
    attempt = start_ranks(project, 2)
    await_pulse(project, 5, attempt)
    second = start_ranks(project, 2, log="second")
    assert ended(second) == [4, 4]
    assert "trains this run already" in second.said()
    assert (project / "logs" / "second-rank1.log").read_text() == ""
    attempt.close()


def test_when_one_process_fails_the_others_end_with_its_exit_code(project):
    images = (project / "data").resolve()
    (project / "data").unlink()
    shutil.copytree(images, project / "data")
    sorted((project / "data/demo/imagenet1k/train").rglob("*.JPEG"))[7].write_bytes(b"no image")
    assert ended(start_ranks(project, 2)) == [3, 3]
    said = [(project / "logs" / f"try-rank{rank}.log").read_text() for rank in range(2)]
    assert sorted(text.count("cannot read image") for text in said) == [0, 1]
    assert not any("Traceback" in text for text in said)


def test_another_number_of_processes_goes_on_and_says_what_that_means(project):
    assert stop_at(project, 30) == 75
    attempt = start_ranks(project, 2)
    assert ended(attempt) == [0, 0]
    said = (project / "logs" / "try-rank0.log").read_text()
    assert "2 processes instead of 1" in said and "sums are added in another order" in said
    assert metrics(project)["steps"] == 2 * (4000 // 64)
    worlds = [each["environment"]["world_size"] for each in provenance(project)["attempts"]]
    assert worlds == [1, 2]


def test_a_process_that_hangs_is_shown_in_the_log_and_costs_minutes_not_days(project):
    attempt = start_ranks(project, 2, "--stall-minutes", "0.05")
    await_pulse(project, 20, attempt)
    attempt.kill(signal.SIGSTOP, 1)
    log = work_dir(project) / "train.log"
    wait_for(lambda: "end of the stacks of rank 0" in log.read_text())
    attempt.kill(signal.SIGCONT, 1)
    assert ended(attempt) == [75, 75]
    stacks = log.read_text()
    assert "stacks of rank 0" in stacks and "trainer.py" in stacks
    assert ended(start_ranks(project, 2)) == [0, 0]


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(project, undisturbed, damage):
    assert stop_at(project, 60, "--checkpoint-steps", "10", number=signal.SIGKILL) < 0
    newest, before = checkpoint.names(work_dir(project) / "checkpoints")[:2]
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content[:-100] if damage == "cut" else content)
    told = smt(project, "checkpoint", str(work_dir(project)), check=False)
    assert told.returncode == 3 and told.stdout.count("DAMAGED") == 1
    done = smt(project, "train", RUN)
    assert f"{newest.name} is damaged" in done.stderr and "trying the one before" in done.stderr
    assert provenance(project)["attempts"][1]["resumed_at_step"] == checkpoint.Name.of(before).step
    assert outcome(project) == undisturbed


def test_a_journal_that_ran_ahead_or_was_torn_is_cut_back(project, undisturbed):
    assert stop_at(project, 60, number=signal.SIGKILL) < 0
    with (work_dir(project) / "journal.jsonl").open("ab") as file:
        file.write(b'{"step": 9999, "epo')
    smt(project, "train", RUN)
    assert outcome(project) == undisturbed


def test_a_run_whose_folder_becomes_read_only_is_one_line_and_goes_on_later(
    project, undisturbed, small_disk
):
    shutil.copytree(project / "results", small_disk / "results")
    env = {"SMT_RESULTS": str(small_disk / "results")}
    shutil.rmtree(project / "results")
    (project / "results").symlink_to(small_disk / "results")
    assert stop_at(project, 30) == 75
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = smt(project, "train", RUN, check=False, env=env)
    assert done.returncode == 2
    one_line(done, str(small_disk), "give a folder that can be written")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    smt(project, "train", RUN, env=env)
    assert outcome(project) == undisturbed


def test_a_disk_that_fills_while_training_costs_nothing_but_the_wait(
    project, undisturbed, small_disk
):
    shutil.copytree(project / "results", small_disk / "results")
    shutil.rmtree(project / "results")
    (project / "results").symlink_to(small_disk / "results")
    spare = shutil.disk_usage(small_disk).free - 4_500_000  # leaves room for three checkpoints
    (small_disk / "spare").write_bytes(b"0" * spare)
    process = start(project, "--checkpoint-steps", "5")
    await_step(run_dir(project), 20, process)
    with (small_disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"0" * 4096):
            pass
    _, said = process.communicate()
    assert process.returncode == 4, said
    assert "free, less than 4 checkpoints take" in said  # a word before it happened
    assert "the disk is full" in said.strip().splitlines()[-1]
    for name in ("ballast", "spare"):
        (small_disk / name).unlink()
    smt(project, "train", RUN)
    assert outcome(project) == undisturbed


def test_a_clock_that_is_set_back_changes_nothing(project, undisturbed):
    faketime = shutil.which("faketime")
    if faketime is None:
        missing = "faketime sets the clock back; install it: apt-get install faketime"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    assert stop_at(project, 30) == 75
    subprocess.run(
        [faketime, "-f", "-400d", *command("train", RUN)], cwd=project, check=True,
        capture_output=True,
    )  # fmt: skip
    attempts = provenance(project)["attempts"]
    assert attempts[1]["started"] < attempts[0]["started"] - 300 * 86400  # it was set back
    assert outcome(project) == undisturbed
    assert 0 < metrics(project)["wall_seconds"] < 600


# --- changes under a half-done run ---------------------------------------------------------------


@pytest.fixture
def own_code(project):
    """The project with a copy of the code, and the environment in which that is what runs."""
    for name in ("smt", "params"):
        shutil.copytree(ROOT / name, project / "code" / name)
    return project, {"PYTHONPATH": str(project / "code")}


def edit_code(project, file, old, new):
    path = project / "code" / "smt" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_other_code_is_refused_with_what_has_changed_unless_allowed(own_code):
    project, env = own_code
    assert stop_at(project, 30, env=env) == 75
    edit_code(project, "engine/optim.py", "betas=optimizer.betas", "betas=(0.9, 0.95)")
    before = [path.name for path in checkpoint.names(work_dir(project) / "checkpoints")]
    done = smt(project, "train", RUN, check=False, env=env)
    assert done.returncode == 4
    one_line(done, "smt/engine/optim.py has changed", "put the code back", "--allow-change")
    assert [path.name for path in checkpoint.names(work_dir(project) / "checkpoints")] == before
    smt(project, "train", RUN, "--allow-change", env=env)
    expected = ["smt/engine/optim.py has changed"]
    assert provenance(project)["attempts"][1]["changes"] == expected
    assert metrics(project)["changes"] == expected


def test_comments_and_docstrings_may_change(own_code, undisturbed):
    project, env = own_code
    assert stop_at(project, 30, env=env) == 75
    edit_code(
        project, "engine/optim.py", '"""Optimizer', '# A remark.\n"""Another word on Optimizer'
    )
    smt(project, "train", RUN, env=env)
    assert metrics(project)["changes"] == []
    assert outcome(project) == undisturbed


def test_other_params_are_refused_with_the_difference_and_putting_them_back_goes_on(
    project, undisturbed
):
    assert stop_at(project, 30) == 75
    first = work_dir(project)
    edit_demo(project, lambda demo: demo["recipes"]["imagenet1k"]["optimizer"].update(lr=3e-3))
    done = smt(project, "train", RUN, check=False)
    assert done.returncode == 4
    one_line(done, "half done, at step", "recipe.optimizer.lr 0.002 -> 0.003", "--allow-change")
    assert (run_dir(project) / first.name / "checkpoints").is_dir()
    edit_demo(project, lambda demo: demo["recipes"]["imagenet1k"]["optimizer"].update(lr=2e-3))
    smt(project, "train", RUN)
    journal = (first / "journal.jsonl").read_bytes()
    assert (weights(project), journal) == undisturbed


def test_with_leave_a_run_begins_anew_with_other_params_and_that_is_recorded(project):
    assert stop_at(project, 30) == 75
    first = work_dir(project)
    edit_demo(project, lambda demo: demo["recipes"]["imagenet1k"]["optimizer"].update(lr=3e-3))
    done = smt(project, "train", RUN, env={"SMT_ALLOW_CHANGE": "1"})
    assert f"begins anew; results/demo/runs/{RUN}/seed0/{first.name} stays as it was" in done.stderr
    given_up = json.loads((first / "provenance.json").read_text())["given_up"]
    assert given_up["for"] == metrics(project)["fingerprint"]
    assert len(list((first / "checkpoints").iterdir())) >= 1
    (second,) = [path for path in run_dir(project).glob("work-*") if path != first]
    attempts = json.loads((second / "provenance.json").read_text())["attempts"]
    assert [each["resumed_at_step"] for each in attempts] == [0]
