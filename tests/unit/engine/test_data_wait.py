"""The share of a training's time in which it waits for data, by a clock that the test sets."""

import pytest
import torch

from smt.engine.data_wait import DataWait, Times
from smt.engine.distributed import Ranks
from smt.engine.progress import Progress
from smt.runs.progress import DATA_WAIT


class Clock:
    """Seconds that pass where the test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def loaded(clock, *seconds):
    """Yield numbers, each after so many seconds."""
    for number, each in enumerate(seconds):
        clock.passes(each)
        yield number


def take_steps(clock, wait, reading, computing):
    """Take a step of `computing` seconds for each micro-batch that is read."""
    batches = wait.measured(loaded(clock, *reading))
    for _ in reading:
        next(batches)
        clock.passes(computing)
    return batches


def test_the_share_is_of_the_time_of_steps_evaluation_apart():
    clock = Clock()
    wait = DataWait(clock)
    batches = take_steps(clock, wait, [1, 1, 4], 2)
    assert wait.times() == Times(waited=6, trained=12, micro_batches=3), (
        "a step that is under way counts"
    )
    batches.close()
    clock.passes(50)
    assert wait.times() == Times(waited=6, trained=12, micro_batches=3)
    assert wait.times().share_since(Times()) == 0.5


def test_an_interval_has_its_own_share_and_without_a_step_none():
    clock = Clock()
    wait = DataWait(clock)
    take_steps(clock, wait, [3], 1).close()
    before = wait.times()
    assert wait.times().share_since(before) is None
    take_steps(clock, wait, [1, 1], 9).close()
    assert wait.times().share_since(before) == pytest.approx(0.1)


def test_what_is_measured_ends_with_the_steps():
    ended = []

    def reading():
        try:
            yield from range(9)
        finally:
            ended.append(True)

    batches = DataWait().measured(reading())
    assert next(batches) == 0 and not ended
    batches.close()
    assert ended


def test_a_training_records_it_once_an_interval_and_logs_it_once_an_epoch(monkeypatch, caplog):
    caplog.set_level("INFO")
    clock = Clock()
    monkeypatch.setattr("smt.engine.progress.DataWait", lambda: DataWait(clock))
    progress = Progress("run", epochs=2, epoch_images=8, ranks=Ranks(0, 1, torch.device("cpu")))
    batches = progress.measured(loaded(clock, 1, 3))
    next(batches), clock.passes(3)
    assert progress.system()[DATA_WAIT] == 25
    next(batches), clock.passes(1)
    assert progress.system()[DATA_WAIT] == 75
    batches.close()
    clock.passes(1000)
    assert DATA_WAIT not in progress.system(), "there was no step"
    progress.epoch(1, {})
    assert "images/s, data wait 50 %," in caplog.text
    with_no_wait = progress.measured(loaded(clock, 0))
    next(with_no_wait), clock.passes(1)
    with_no_wait.close()
    progress.epoch(2, {})
    assert "data wait 0 %," in caplog.messages[-1]
