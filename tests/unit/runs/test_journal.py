"""The journal: the same bytes after an interruption, and times that never change."""

import json

import pytest

from smt.runs.journal import (
    JOURNAL,
    TIMES,
    Evaluation,
    Journal,
    Position,
    best_evaluation,
    read,
    refusal,
)


def append(journal, *steps):
    for step in steps:
        journal.append(step, 0, {"train/loss": 1 / step}, {"system/memory_mb": 10.0})


def test_an_interrupted_journal_has_the_bytes_of_an_undisturbed_one(tmp_path):
    whole, interrupted = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), interrupted.mkdir()
    journal = Journal(whole, Position())
    append(journal, 1, 2, 3, 4)
    journal.close()

    journal = Journal(interrupted, Position())
    append(journal, 1, 2)
    saved = journal.sync()
    append(journal, 3)
    journal.close()
    journal = Journal(interrupted, saved)
    append(journal, 3, 4)
    journal.close()

    assert (interrupted / JOURNAL).read_bytes() == (whole / JOURNAL).read_bytes()


def test_a_rewritten_line_keeps_its_first_time(tmp_path):
    journal = Journal(tmp_path, Position())
    append(journal, 1, 2)
    journal.close()
    before = [record.time for record in read(tmp_path, 0)]
    journal = Journal(tmp_path, Position())
    append(journal, 1, 2)
    journal.close()
    assert [record.time for record in read(tmp_path, 0)] == before
    assert len((tmp_path / TIMES).read_text().splitlines()) == 4


def test_an_incomplete_last_line_is_not_read(tmp_path):
    journal = Journal(tmp_path, Position())
    append(journal, 1, 2)
    journal.close()
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"step": 3, "epo')
    assert [record.step for record in read(tmp_path, 0)] == [1, 2]


def test_lines_without_a_time_take_the_previous_time(tmp_path):
    journal = Journal(tmp_path, Position())
    append(journal, 1, 2)
    journal.close()
    first = (tmp_path / TIMES).read_text().splitlines()[0]
    (tmp_path / TIMES).write_text(first + "\n" + '{"line": 1, "ti')
    records = read(tmp_path, 5.0)
    assert records[1].time == records[0].time == json.loads(first)["time"]
    (tmp_path / TIMES).unlink()
    assert [record.time for record in read(tmp_path, 5.0)] == [5.0, 5.0]


def test_times_never_decrease_when_the_clock_is_set_back(tmp_path):
    journal = Journal(tmp_path, Position())
    append(journal, 1, 2, 3)
    journal.close()
    times = (100.0, 40.0, 120.0)
    lines = [json.dumps({"line": n, "time": at, "metrics": {}}) for n, at in enumerate(times)]
    (tmp_path / TIMES).write_text("\n".join(lines) + "\n")
    assert [record.time for record in read(tmp_path, 0)] == [100.0, 100.0, 120.0]


def test_a_torn_line_of_times_is_dropped_on_opening(tmp_path):
    journal = Journal(tmp_path, Position())
    append(journal, 1)
    position = journal.sync()
    journal.close()
    with (tmp_path / TIMES).open("ab") as file:
        file.write(b'{"line": 1, "ti')
    journal = Journal(tmp_path, position)
    append(journal, 2)
    journal.close()
    assert len(read(tmp_path, 0)) == 2
    assert all(json.loads(line) for line in (tmp_path / TIMES).read_text().splitlines())


def test_a_journal_shorter_than_its_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ahead of the journal"):
        Journal(tmp_path, Position(bytes=10, lines=1))


def test_late_writes_of_an_attempt_that_lost_the_run_reach_nobody(tmp_path):
    """As from the memory of a host that was cut off, when it comes back."""
    lost = Journal(tmp_path, Position())
    append(lost, 1, 2)
    saved = lost.sync()
    taken = Journal(tmp_path, saved)
    append(lost, 3)
    append(taken, 3, 4)
    append(lost, 4, 5, 6)
    lost.close()
    taken.close()
    assert [record.step for record in read(tmp_path, 0)] == [1, 2, 3, 4]
    assert len((tmp_path / TIMES).read_text().splitlines()) == 4


def test_a_position_in_the_journal_of_another_attempt_is_refused(tmp_path):
    first = Journal(tmp_path, Position())
    append(first, 1)
    saved = first.position
    append(first, 2)
    ahead = first.position
    first.close()
    second = Journal(tmp_path, saved)
    second.append(2, 0, {"train/loss": 0.7}, {})  # another machine, other last digits
    append(second, 3, 4)
    second.close()
    assert refusal(tmp_path, saved) is None and refusal(tmp_path, second.position) is None
    assert "which another attempt has written" in refusal(tmp_path, ahead)
    assert refusal(tmp_path, Position(ahead.bytes, ahead.lines)) is None, "of an earlier version"
    (tmp_path / JOURNAL).unlink()
    assert refusal(tmp_path, Position()) is None
    assert "ahead of the journal" in refusal(tmp_path, saved)


# --- the best evaluation ------------------------------------------------------------------------


def write_lines(folder, *lines):
    text = [json.dumps({"step": 5 * n, "epoch": n, "metrics": metrics}) for n, metrics in lines]
    (folder / JOURNAL).write_text("".join(f"{line}\n" for line in text))


def test_the_best_evaluation_is_the_first_of_the_highest_with_all_that_it_measured(tmp_path):
    write_lines(
        tmp_path,
        (1, {"train/loss": 2.0, "eval/top1": 81.0, "eval/top5": 95.0}),
        (1, {"train/loss": 1.5}),
        (2, {"eval/top1": 82.5, "eval/top5": 95.5, "train/loss": 1.0}),
        (3, {"eval/top1": 82.5, "eval/top5": 96.0}),
        (4, {"eval/top1": 82.0, "eval/top5": 96.5}),
    )
    best = best_evaluation(tmp_path, "top1")
    assert best == Evaluation({"top1": 82.5, "top5": 95.5}, 2, 3, 4)
    assert best_evaluation(tmp_path, "top5").epoch == 4


def test_an_evaluation_that_is_nan_is_never_the_best(tmp_path):
    write_lines(tmp_path, (1, {"eval/top1": float("nan")}), (2, {"eval/top1": 50.0}))
    assert best_evaluation(tmp_path, "top1").epoch == 2
    write_lines(tmp_path, (1, {"eval/top1": float("nan")}))
    assert best_evaluation(tmp_path, "top1") is None


def test_without_a_journal_or_an_evaluation_the_best_is_none(tmp_path):
    assert best_evaluation(tmp_path, "top1") is None
    write_lines(tmp_path, (1, {"train/loss": 1.0, "eval/top1_of_another_kind": 90.0}))
    assert best_evaluation(tmp_path, "top1") is None


def test_a_damaged_evaluation_is_an_error(tmp_path):
    (tmp_path / JOURNAL).write_text('{"step":5,"epoch":1,"metrics":{"eval/top1":8\n')
    with pytest.raises(ValueError):
        best_evaluation(tmp_path, "top1")
