"""`smt audit`: honest runs pass, and each kind of forgery is found by the stretch that has it."""

import hashlib
import json
import shutil
import signal
from collections import Counter

import pytest

from smt.replay.subject import detection_probability, select
from smt.runs.checkpoint_files import CheckpointName, checkpoints
from smt.runs.journal import JOURNAL
from tests.helpers import finished_project, forgeries, pause
from tests.helpers.finished_project import CHILD, DETECTORS, PARENT, SEGMENTER
from tests.helpers.forgeries import find
from tests.helpers.once import make_once
from tests.helpers.trainings import (
    RUN_OF_DEMO,
    STEPS_PER_EPOCH,
    copy_project,
    edit_demo,
    make_small_project,
    one_line,
    outcome,
    output_of,
    run_dir,
    smt,
    start,
    stop_at,
    work_dir,
)
from tests.helpers.versioned import SCALE

RUN = RUN_OF_DEMO
EPOCHS = 4


def with_milestones(demo, count=EPOCHS):
    demo["keep_milestones"] = count
    demo["recipes"]["imagenet1k"]["schedule"]["epochs"] = EPOCHS


def make_audited(folder, small_data):
    """A small project with a milestone after each of its epochs."""
    make_small_project(folder, small_data)
    edit_demo(folder, with_milestones)


@pytest.fixture(scope="session")
def audited(tmp_path_factory, worker_id, small_data):
    """A project whose run was stopped once, resumed, and is done, with four milestones."""

    def make(folder):
        make_audited(folder, small_data)
        assert stop_at(folder, STEPS_PER_EPOCH + 3) == 75
        smt(folder, "train", RUN)

    return make_once(tmp_path_factory, worker_id, "audited", make)


@pytest.fixture
def project(audited, tmp_path):
    """A copy of the project with milestones."""
    return copy_project(audited, tmp_path / "project")


def audit(project, *options, **more):
    return smt(project, "audit", RUN, *options, check=False, **more)


def audit_record(project):
    return json.loads((run_dir(project) / "audit.json").read_text())


def outcomes(project):
    return [each["outcome"] for each in audit_record(project)["replays"]]


def files(project):
    """Return what a run consists of: every file below its folder but the record of audits."""
    paths = [path for path in run_dir(project).rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths if path.name != "audit.json"}


def milestone(project, number):
    """Return the checkpoint that a stretch ends in."""
    step = find(project).stretches[number - 1].end.step
    (path,) = [
        path for path in checkpoints(work_dir(project))
        if CheckpointName.of(path).step == step and CheckpointName.of(path).epochs == number
    ]  # fmt: skip
    return path


# --- honest runs ----------------------------------------------------------------------------------


def test_an_honest_run_that_was_interrupted_passes_and_nothing_of_it_changes(project):
    before = files(project)
    result = audit(project, "--segments", "all", "--draw", "1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("equal to the byte") == EPOCHS + 1
    assert "4 of 4 stretches" in result.stdout and "probability of 100%" in result.stdout
    assert "4 of 4 stretches, 48 of 48 steps" in result.stderr
    assert outcomes(project) == ["equal"] * EPOCHS
    assert files(project) == before


def test_a_draw_is_printed_and_repeats_and_audits_add_up(project):
    first = audit(project, "--segments", "1", "--draw", "3")
    assert "drawn by --draw 3" in first.stderr and "probability of 25%" in first.stdout
    again = audit(project, "--segments", "1", "--draw", "3")
    assert again.stdout == first.stdout and outcomes(project) == ["equal"]
    stretches = find(project).stretches
    draw = next(draw for draw in range(99) if drawn(stretches, 1, draw) != drawn(stretches, 1, 3))
    assert audit(project, "--segments", "1", "--draw", str(draw)).returncode == 0
    assert outcomes(project) == ["equal", "equal"]
    assert audit_record(project)["stretches"] == EPOCHS


def drawn(stretches, segments, draw):
    return [each.number for each in select(stretches, str(segments), draw)]


def test_verify_shows_what_was_audited(project):
    assert audit(project, "--segments", "2", "--draw", "0").returncode == 0
    result = smt(project, "verify", "--experiment", RUN, check=False)
    assert f"{RUN}-seed0: 2 of 4 stretches trained again, 2 equal to the byte" in result.stdout


def test_a_run_on_two_processes_is_audited_on_two(tmp_path, small_data):
    make_small_project(tmp_path / "pair", small_data)
    edit_demo(tmp_path / "pair", with_milestones)
    smt(tmp_path / "pair", "train", RUN, ranks=2)
    result = audit(tmp_path / "pair", "--segments", "2", "--draw", "1", ranks=2)
    assert result.returncode == 0, result.stderr
    assert outcomes(tmp_path / "pair") == ["equal", "equal"]
    refused = audit(tmp_path / "pair")
    assert refused.returncode == 2
    one_line(
        refused, "on 2 processes, and this is 1; run: torchrun --nproc-per-node 2 -m smt audit"
    )


def test_honest_runs_of_every_task_pass(finished, tmp_path):
    """A child that starts from a parent's weights, a detector and a segmenter."""
    copy = finished_project.copy(finished, tmp_path / "finished")
    for experiment in (CHILD, DETECTORS[1], SEGMENTER):
        result = copy.smt("audit", experiment, "--segments", "all", "--scale", SCALE)
        assert result.returncode == 0, result.stderr
        assert "with a probability of 100%" in result.stdout
    shutil.rmtree(copy.folder)


def test_a_parent_that_was_trained_again_is_named(finished, tmp_path):
    copy = finished_project.copy(finished, tmp_path / "finished")
    path = finished_project.run_dir(copy, PARENT) / "model.safetensors"
    finished_project.flip(path)
    result = copy.smt("audit", CHILD, "--segments", "all", "--scale", SCALE)
    assert result.returncode == 2
    one_line(result, f"started from {PARENT}-seed0", "is not the file that it started from")
    shutil.rmtree(copy.folder)


# --- forgeries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forge",
    [
        forgeries.with_weights_edited,
        pytest.param(forgeries.with_another_rate, marks=pytest.mark.slow),
    ],
)
def test_a_forged_stretch_is_found_with_the_probability_that_the_segments_give(project, forge):
    forged = 2
    forge(project, forged)
    assert find(project).problems() == [], "all records agree with the forgery"
    result = audit(project, "--segments", "all")
    assert result.returncode == 5, result.stderr
    assert outcomes(project) == ["equal", "differs", "equal", "equal"]
    assert "stretch 2 (steps 12 to 24): DIFFERS: tensor model." in result.stdout
    assert "journal.jsonl from line " in result.stdout

    stretches, draws = find(project).stretches, 4000
    for segments in (1, 2, 3):
        hits = sum(forged in drawn(stretches, segments, draw) for draw in range(draws))
        expected = detection_probability(EPOCHS, segments)
        # Five standard deviations of a binomial count.
        assert abs(hits / draws - expected) < 5 * (expected * (1 - expected) / draws) ** 0.5
    hit = next(draw for draw in range(99) if drawn(stretches, 1, draw) == [forged])
    miss = next(draw for draw in range(99) if drawn(stretches, 1, draw) != [forged])
    codes = {draw: audit(project, "--segments", "1", "--draw", str(draw)).returncode
             for draw in (hit, miss)}  # fmt: skip
    assert codes == {hit: 5, miss: 0}


def test_a_start_that_is_not_of_the_seed_is_found_in_the_first_stretch(project):
    forgeries.with_another_rate(project, 1)
    result = audit(project, "--segments", "all")
    assert result.returncode == 5
    assert outcomes(project) == ["differs", "equal", "equal", "equal"]


def test_a_replaced_checkpoint_is_named(project):
    forgeries.replace_checkpoint(project, milestone(project, 2))
    result = audit(project)
    assert result.returncode == 5
    one_line(result, "step-0000000024", "was replaced", "its state is not the one that line ")
    assert not (run_dir(project) / "audit.json").exists()
    verified = smt(project, "verify", "--experiment", RUN, check=False)
    assert verified.returncode == 5
    assert any("step-0000000024" in line and "was replaced" in line
               for line in verified.stdout.splitlines())  # fmt: skip


def test_a_changed_byte_of_a_milestone_is_named(project):
    path = milestone(project, 1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = audit(project)
    assert result.returncode == 5
    one_line(result, path.name, "is damaged or was changed")


def test_a_removed_milestone_is_named(project):
    milestone(project, 3).unlink()
    result = audit(project)
    assert result.returncode == 5
    one_line(result, "the checkpoint of step 36, a milestone by line ", "is not there")


@pytest.mark.parametrize("damage", ["changed", "removed", "reordered"])
def test_a_chain_that_is_broken_in_the_journal_is_named(project, damage):
    log = work_dir(project) / JOURNAL
    lines = log.read_bytes().splitlines(keepends=True)
    first, second = [n for n, line in enumerate(lines) if b'"milestone"' in line][:2]
    if damage == "changed":
        lines[first] = lines[first].replace(b'"eval/loss":', b'"eval/loss":1')
    elif damage == "removed":
        del lines[first]
        second -= 1
    else:
        lines[first], lines[second] = lines[second], lines[first]
        second = first
    log.write_bytes(b"".join(lines))
    result = audit(project)
    assert result.returncode == 5
    one_line(result, f"journal.jsonl: line {second + 1}: the chain of milestones is broken")


def test_a_journal_whose_last_milestone_was_taken_out_is_named(project):
    log = work_dir(project) / JOURNAL
    *before, last = log.read_bytes().splitlines(keepends=True)
    line = json.loads(last)
    del line["milestone"]
    log.write_bytes(b"".join([*before, json.dumps(line).encode() + b"\n"]))
    result = audit(project)
    assert result.returncode == 5
    one_line(result, "its last milestone is of step 36, not of the end, 48")
    assert "its SHA-256 differs" in result.stdout


def test_weights_that_are_not_those_of_the_last_milestone_are_named(project):
    path = run_dir(project) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    numbers = run_dir(project) / "metrics.json"
    known = json.loads(numbers.read_text())
    known["weights_sha256"] = hashlib.sha256(content).hexdigest()
    numbers.write_text(json.dumps(known))
    result = audit(project)
    assert result.returncode == 5
    one_line(result, "model.safetensors: tensor ", "is not that of ")


# --- other hardware -------------------------------------------------------------------------------


def test_other_bits_on_other_hardware_are_no_verdict(project):
    forgeries.with_another_rate(project, 2)  # other bits, as another processor gives
    path = work_dir(project) / "provenance.json"
    known = json.loads(path.read_text())
    for attempt in known["attempts"]:
        attempt["environment"]["processor"] = "Another Processor"
    path.write_text(json.dumps(known))
    result = audit(project, "--segments", "all")
    assert result.returncode == 6, result.stderr
    assert "stretch 2 (steps 12 to 24): not on like hardware or code" in result.stdout
    assert "processor Another Processor, here " in result.stdout
    assert outcomes(project) == ["equal", "undecided", "equal", "equal"]


def test_another_number_of_processes_is_refused_with_the_command(project):
    result = audit(project, ranks=2)
    assert result.returncode == 2
    assert "was trained on 1 process, and this is 2; run: smt audit" in result.stderr


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("segments", ["0", "5", "-1", "some"])
def test_segments_that_are_not_there_are_refused(project, segments):
    result = audit(project, "--segments", segments)
    assert result.returncode == 2
    one_line(result, f"--segments {segments}: valid: 1 to 4, or all")


def test_a_run_without_milestones_is_one_line_that_names_the_key(trained, tmp_path):
    project = copy_project(trained, tmp_path / "plain")
    log = work_dir(project) / JOURNAL
    lines = [json.loads(line) for line in log.open()]
    for line in lines:
        line.pop("milestone", None)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = audit(project)
    assert result.returncode == 2
    one_line(result, "has no milestones", "set demo.keep_milestones in params/scales.yaml")


def test_unfinished_and_untrained_runs_are_one_line(small_project, stopped):
    one_line(audit(small_project), "has not been trained; run: smt train")
    one_line(audit(stopped), "is unfinished, at step ", "; run: smt train")


def test_a_run_of_other_params_is_one_line(project):
    edit_demo(project, lambda demo: demo["recipes"]["imagenet1k"]["optimizer"].update(lr=1e-3))
    result = audit(project)
    assert result.returncode == 2
    one_line(result, "was trained with other params: recipe.optimizer.lr 0.002 -> 0.001")


def test_a_run_that_is_being_trained_is_refused(small_project):
    process = start(small_project, "train", RUN, prepare=pause.at_step(3))
    with process:
        pause.await_stop(process, lambda: output_of(small_project))
        one_line(audit(small_project), "is being trained by process ", "audit it once it is done")
        pause.send(process, signal.SIGKILL)
        process.wait()


def test_ctrl_c_leaves_nothing_behind(project):
    before = files(project)
    process = start(
        project, "audit", RUN, "--segments", "all", prepare=pause.at_step(STEPS_PER_EPOCH + 2)
    )
    with process:
        pause.await_stop(process, lambda: output_of(project))
        pause.send(process, signal.SIGINT)
        assert process.wait() == 130
    assert output_of(project).splitlines()[-1] == "smt: stopped"
    assert files(project) == before and not (run_dir(project) / "audit").exists()
    assert outcomes(project) == ["equal"], "the stretch before was done"


def test_what_a_killed_audit_left_is_removed_by_the_next(project):
    process = start(project, "audit", RUN, prepare=pause.at_step(2), log="killed")
    with process:
        pause.await_stop(process, lambda: output_of(project, "killed"))
        assert (run_dir(project) / "audit").exists()
        pause.send(process, signal.SIGKILL)
        process.wait()
    assert audit(project, "--segments", "1").returncode == 0
    assert not (run_dir(project) / "audit").exists()


# --- how milestones are asked for -----------------------------------------------------------------


def test_the_number_of_milestones_changes_no_byte_of_the_weights(audited, small_data, tmp_path):
    make_small_project(tmp_path / "plain", small_data)
    edit_demo(tmp_path / "plain", lambda demo: with_milestones(demo, 0))
    smt(tmp_path / "plain", "train", RUN)
    (weights, log), (kept_weights, kept_log) = outcome(tmp_path / "plain"), outcome(audited)
    assert weights == kept_weights
    lines, kept_lines = (
        [json.loads(line) for line in each.splitlines()] for each in (log, kept_log)
    )
    recorded = Counter("milestone" in line for line in kept_lines)
    assert recorded[True] == EPOCHS
    assert lines == [{k: v for k, v in line.items() if k != "milestone"} for line in kept_lines]
    assert len(checkpoints(work_dir(audited))) == EPOCHS
    assert len(checkpoints(work_dir(tmp_path / "plain"))) <= 3
