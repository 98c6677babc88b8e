"""The training loop on a small regression task, with a real model, optimizer and files."""

import json
import logging
import math
import os
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smt.config.recipes import Guard
from smt.data.rng import derive_seed, seeded
from smt.engine import checkpoint
from smt.engine.distributed import Ranks
from smt.engine.guard import TrainingDiverged
from smt.engine.preempt import StopRequest
from smt.engine.progress import Progress
from smt.engine.protocol import EvaluationInterrupted, MicroBatch, never
from smt.engine.trainer import Settings, Trainer, TrainingStopped
from smt.errors import TrainingError
from smt.runs import journal, milestones
from smt.runs.checkpoint_files import CheckpointName, checkpoints_in
from smt.runs.progress import DATA_WAIT
from testbed.waiting import PATIENCE
from tests.helpers import ROOT, forkserver
from tests.helpers.params import project_at

DEMO = project_at("demo").recipes["imagenet1k"]
STOP = Guard(policy="stop", max_skips=0, spike=None)
ONE = Ranks(0, 1, torch.device("cpu"))


class Regression:
    """Learns a fixed linear map through BatchNorm and dropout; all data are keyed draws."""

    headline = "top1"

    def __init__(
        self, *, accumulation_steps=1, batch_norm=True, dropout=0.1, epochs=3, lr=1e-2, guard=STOP
    ):
        torch.manual_seed(0)
        layers = [nn.Linear(8, 16), nn.BatchNorm1d(16) if batch_norm else nn.Identity()]
        self.model = nn.Sequential(*layers, nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 1))
        self.recipe = DEMO.model_copy(
            update={
                "schedule": DEMO.schedule.model_copy(update={"epochs": epochs}),
                "optimizer": DEMO.optimizer.model_copy(update={"lr": lr}),
                "guard": guard,
            }
        )
        self.steps_per_epoch, self.accumulation_steps = 5, accumulation_steps
        self.poison = {}
        self.before_step = lambda step: None

    def micro_batches(self, epoch, start_step):
        for step in range(start_step, self.steps_per_epoch):
            self.before_step(epoch * self.steps_per_epoch + step)
            with seeded(1, epoch, step):
                inputs = torch.randn(16, 8)
            inputs[3, 3] *= self.poison.get(epoch * self.steps_per_epoch + step, 1.0)
            part = 16 // self.accumulation_steps
            for index, chunk in enumerate(inputs.split(part)):
                targets = chunk.sum(1, keepdim=True)
                yield MicroBatch((chunk, targets), part, (epoch, step, index))

    def loss(self, model, batch):
        inputs, targets = batch.loss_inputs
        return F.mse_loss(model(inputs), targets)

    def evaluate(self, interrupted=never, *, final=True):
        if interrupted():
            raise EvaluationInterrupted
        self.model.eval()
        with seeded(2), torch.no_grad():
            inputs = torch.randn(64, 8)
            value = F.mse_loss(self.model(inputs), inputs.sum(1, keepdim=True)).item()
        self.model.train()
        return {"loss": value}


def make_trainer(
    task, folder, stop=None, log_every=2, seconds=1e9, steps=None, stall=3600.0,
    milestones=frozenset(), **more
):  # fmt: skip
    folder.mkdir(exist_ok=True)
    settings = Settings(log_every, seconds, steps, stall, milestones)
    return Trainer(
        task, folder, seed=3, ranks=ONE, settings=settings, stop=stop or StopRequest(), **more
    )


def run(task, folder, **options):
    trainer = make_trainer(task, folder, **options)
    with Progress("test", epochs=3, epoch_images=80, ranks=ONE) as progress:
        return trainer, trainer.train(progress)


def equal_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_training_lowers_the_loss(tmp_path):
    task = Regression(epochs=40)
    before = task.evaluate()["loss"]
    _, metrics = run(task, tmp_path)
    assert metrics["loss"] < 0.2 * before


def test_the_journal_has_every_record_and_the_last_evaluation(tmp_path):
    _, metrics = run(Regression(), tmp_path)
    records = journal.read(tmp_path, 0)
    assert [record.step for record in records] == [2, 4, 5, 6, 8, 10, 10, 12, 14, 15]
    assert records[-1].metrics["eval/loss"] == metrics["loss"]
    assert records[-1].epoch == 3
    assert all("train/lr" in record.metrics for record in records if record.step % 2 == 0 and
               "eval/loss" not in record.metrics)  # fmt: skip


def test_the_wait_for_data_is_in_the_times_of_steps_and_not_in_the_journal(tmp_path):
    run(Regression(), tmp_path)
    shares = [record.metrics.get(DATA_WAIT) for record in journal.read(tmp_path, 0)]
    assert shares.pop(6) is None, "the evaluation after step 10, which has a record of its own"
    assert all(0 < share < 100 for share in shares)
    assert b"system/" not in (tmp_path / journal.JOURNAL).read_bytes()


def test_a_record_has_the_mean_loss_of_the_steps_since_the_one_before(tmp_path):
    run(Regression(), tmp_path / "all", log_every=1)
    run(Regression(), tmp_path / "some")
    losses = {
        record.step: record.metrics["train/loss"]
        for record in journal.read(tmp_path / "all", 0)
        if "train/loss" in record.metrics
    }
    before = 0
    for record in journal.read(tmp_path / "some", 0):
        window = [losses[step] for step in range(before + 1, record.step + 1)]
        if window:  # else it is the evaluation after a step that has a record of its own
            assert record.metrics["train/loss"] == pytest.approx(
                sum(window) / len(window), rel=1e-9
            )
        before = record.step
    assert before == 15


@pytest.mark.parametrize("stop_at", [0, 1, 4, 5, 7, 14])
def test_stopped_at_any_step_and_resumed_it_ends_with_the_same_bytes(tmp_path, stop_at):
    whole = Regression()
    run(whole, tmp_path / "whole")
    stop = StopRequest()
    first = Regression()

    def request_stop(step):
        if step == stop_at:
            stop.signal = 15

    first.before_step = request_stop
    with pytest.raises(TrainingStopped):
        run(first, tmp_path / "cut", stop=stop)
    torch.rand(7)  # what happens between the two must not matter
    second = Regression()
    resumed, _ = run(second, tmp_path / "cut")
    assert equal_weights(whole.model, second.model)
    journals = [tmp_path / name / journal.JOURNAL for name in ("whole", "cut")]
    assert journals[0].read_bytes() == journals[1].read_bytes()
    assert resumed.state.step == resumed.total_steps


def test_killed_between_checkpoints_it_ends_with_the_same_bytes(tmp_path):
    whole = Regression()
    run(whole, tmp_path / "whole")

    class Killed(BaseException):
        pass

    first = Regression()

    def kill(step):
        if step == 8:
            raise Killed

    first.before_step = kill
    with pytest.raises(Killed):
        run(first, tmp_path / "cut")
    assert checkpoint.load_newest(tmp_path / "cut" / "checkpoints").step == 5
    second = Regression()
    run(second, tmp_path / "cut")
    assert equal_weights(whole.model, second.model)
    journals = [tmp_path / name / journal.JOURNAL for name in ("whole", "cut")]
    assert journals[0].read_bytes() == journals[1].read_bytes()


def test_a_finished_run_only_evaluates(tmp_path):
    _, metrics = run(Regression(), tmp_path)
    task = Regression()
    task.before_step = lambda step: pytest.fail("a step was taken")
    _, again = run(task, tmp_path)
    assert again == metrics


def test_gradient_accumulation_gives_the_step_of_the_whole_batch(tmp_path):
    whole = Regression(batch_norm=False, dropout=0.0)
    parts = Regression(batch_norm=False, dropout=0.0, accumulation_steps=4)
    run(whole, tmp_path / "whole")
    run(parts, tmp_path / "parts")
    for first, second in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_with_step_and_rate(tmp_path):
    task = Regression()
    task.poison[7] = math.nan
    with pytest.raises(TrainingDiverged, match=r"step 7 of 15, learning rate 0\.00\d+") as raised:
        run(task, tmp_path)
    assert raised.value.step == 7


def checkpoint_steps(folder, epochs=1, **options):
    """Return step and finished epochs of every checkpoint that a run writes, in order."""
    steps = []
    original = checkpoint.write

    def record_step(folder, state, *arguments):
        steps.append((state.step, state.epochs))
        return original(folder, state, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", record_step)
        run(Regression(epochs=epochs), folder, **options)
    return steps


def test_checkpoints_are_written_after_some_seconds(tmp_path):
    assert checkpoint_steps(tmp_path, seconds=0.0) == [(n, 0) for n in range(1, 6)] + [(5, 1)]


def test_checkpoints_are_written_every_few_steps(tmp_path):
    steps = checkpoint_steps(tmp_path, epochs=2, steps=3)
    assert steps == [(3, 0), (5, 1), (6, 1), (9, 1), (10, 2)]


def positions(trainer):
    """Return step and closed epochs of the checkpoints that are left, oldest first."""
    names = map(CheckpointName.of, checkpoints_in(trainer.checkpoints))
    return sorted((name.step, name.epochs) for name in names)


def test_milestones_are_kept_and_recorded_and_change_nothing_else(tmp_path):
    plain, kept = Regression(epochs=6), Regression(epochs=6)
    run(plain, tmp_path / "plain")
    trainer, _ = run(kept, tmp_path / "kept", milestones=frozenset({2, 3, 6}))
    assert positions(trainer) == [(10, 2), (15, 3), (25, 5), (30, 6)]
    assert equal_weights(plain.model, kept.model)
    lines = [
        [json.loads(line) for line in (tmp_path / name / journal.JOURNAL).open()]
        for name in ("plain", "kept")
    ]
    recorded = [line.pop("milestone", None) for line in lines[1]]
    assert lines[0] == lines[1]
    assert sum(each is not None for each in recorded) == 3
    chain = milestones.read(tmp_path / "kept")
    files = {CheckpointName.of(path).step: path for path in checkpoints_in(trainer.checkpoints)}
    assert [(each.step, each.epochs) for each in chain] == [(10, 2), (15, 3), (30, 6)]
    for milestone in chain:
        assert checkpoint.read(files[milestone.step]).digest() == milestone.state_sha256


@pytest.mark.parametrize("stop_at", [4, 7, 9, 12])
def test_a_resumed_training_records_the_same_milestones_and_keeps_them(tmp_path, stop_at):
    options = {"milestones": frozenset({1, 2, 4})}
    run(Regression(epochs=4), tmp_path / "whole", **options)
    stop, first = StopRequest(), Regression(epochs=4)

    def request_stop(step):
        if step == stop_at:
            stop.signal = 15

    first.before_step = request_stop
    with pytest.raises(TrainingStopped):
        run(first, tmp_path / "cut", stop=stop, **options)
    resumed, _ = run(Regression(epochs=4), tmp_path / "cut", **options)
    assert positions(resumed) == [(5, 1), (10, 2), (15, 3), (20, 4)]
    journals = [tmp_path / name / journal.JOURNAL for name in ("whole", "cut")]
    assert journals[0].read_bytes() == journals[1].read_bytes()


def test_a_milestone_stays_where_fewer_are_asked_for_later(tmp_path):
    stop, first = StopRequest(), Regression(epochs=5)
    first.before_step = lambda step: setattr(stop, "signal", 15 if step == 7 else stop.signal)
    with pytest.raises(TrainingStopped):
        run(first, tmp_path, stop=stop, milestones=frozenset({1, 2, 3, 4, 5}))
    trainer, _ = run(Regression(epochs=5), tmp_path)
    assert positions(trainer) == [(5, 1), (20, 4), (25, 5)]


def test_a_part_of_a_training_ends_after_so_many_epochs_as_the_whole_was_then(tmp_path):
    options = {"milestones": frozenset({1, 2, 4})}
    run(Regression(epochs=4), tmp_path / "whole", **options)
    trainer = make_trainer(Regression(epochs=4), tmp_path / "part", **options)
    with Progress("test", epochs=4, epoch_images=80, ranks=ONE) as progress:
        trainer.train(progress, until=2)
    part, whole = (milestones.read(tmp_path / name) for name in ("part", "whole"))
    assert part == whole[:2]
    assert trainer.state.epochs == 2 and trainer.state.step == 10


def test_an_evaluation_interrupted_by_a_signal_is_repeated(tmp_path):
    whole = Regression()
    run(whole, tmp_path / "whole")
    stop, first = StopRequest(), Regression()
    evaluate = first.evaluate

    def stop_during_evaluation(interrupted, *, final):
        stop.signal = 15
        return evaluate(interrupted)

    first.evaluate = stop_during_evaluation
    with pytest.raises(TrainingStopped, match="after step 5 of 15"):
        run(first, tmp_path / "cut", stop=stop)
    newest = checkpoint.load_newest(tmp_path / "cut" / "checkpoints")
    assert (newest.step, newest.epochs) == (5, 0)
    second = Regression()
    second.before_step = lambda step: pytest.fail("again") if step < 5 else None
    run(second, tmp_path / "cut")
    assert equal_weights(whole.model, second.model)
    journals = [tmp_path / name / journal.JOURNAL for name in ("whole", "cut")]
    assert journals[0].read_bytes() == journals[1].read_bytes()


def test_if_all_checkpoints_are_damaged_training_does_not_restart_from_zero(tmp_path):
    trainer, _ = run(Regression(), tmp_path)
    for path in checkpoints_in(trainer.checkpoints):
        path.write_bytes(path.read_bytes()[:-1])
    lines = (tmp_path / journal.JOURNAL).read_bytes()
    with pytest.raises(TrainingError, match=r"all 2 checkpoints are damaged; .* backup"):
        make_trainer(Regression(), tmp_path)
    assert (tmp_path / journal.JOURNAL).read_bytes() == lines


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run(Regression(), tmp_path, identity={"fingerprint": "one"})
    with pytest.raises(TrainingError, match=r"step 15 is of another run: .*one.*, not .*other"):
        make_trainer(Regression(), tmp_path, identity={"fingerprint": "other"})


def test_temporary_files_of_a_killed_writer_are_removed(tmp_path):
    trainer, _ = run(Regression(), tmp_path)
    partial = trainer.checkpoints / ".step-0000000009.4711.tmp"
    partial.write_bytes(b"half of a checkpoint")
    make_trainer(Regression(), tmp_path)
    assert not partial.exists()


# --- the guard -----------------------------------------------------------------------------------

SKIP = Guard(policy="skip", max_skips=2, spike=None)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_skipped_step_changes_nothing_but_the_step_count(tmp_path, poison):
    task = Regression(guard=SKIP)
    task.poison[7] = poison
    states = {}

    def record_state(step):
        states[step] = {k: v.clone() for k, v in task.model.state_dict().items()}

    task.before_step = record_state
    trainer, metrics = run(task, tmp_path)
    assert all(torch.equal(states[7][name], states[8][name]) for name in states[7])
    assert not torch.equal(states[8]["0.weight"], states[9]["0.weight"])
    assert math.isfinite(metrics["loss"])
    assert (trainer.state.step, trainer.state.loss_statistics.skipped) == (15, 1)
    records = [r for r in journal.read(tmp_path, 0) if "train/skipped_steps" in r.metrics]
    assert [(r.step, r.metrics["train/skipped_steps"]) for r in records] == [(7, 1.0)]


def test_a_gradient_that_is_not_finite_is_skipped_as_well(tmp_path):
    task = Regression(guard=SKIP, batch_norm=False)

    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.inf

    loss, steps = task.loss, iter(range(15))
    task.loss = lambda model, batch: (
        Steep.apply(loss(model, batch)) if next(steps) == 4 else loss(model, batch)
    )
    trainer, _ = run(task, tmp_path)
    assert trainer.state.loss_statistics.skipped == 1
    assert all(torch.isfinite(parameter).all() for parameter in task.model.parameters())


def test_more_skipped_steps_than_allowed_fail_the_run(tmp_path):
    task = Regression(guard=SKIP)
    task.poison |= {3: math.nan, 6: math.nan, 11: math.nan}
    with pytest.raises(TrainingDiverged, match=r"at step 11 of 15.*after 2 skipped steps; lower"):
        run(task, tmp_path)


PATIENT = Guard(policy="skip", max_skips=100, spike=None)


def test_a_run_whose_steps_were_all_skipped_fails(tmp_path):
    task = Regression(guard=PATIENT)
    task.poison |= dict.fromkeys(range(15), math.nan)
    with pytest.raises(
        TrainingDiverged, match=r"all 15 steps were skipped, at step 15 of 15; lower"
    ):
        run(task, tmp_path)


def test_a_run_that_ends_with_infinite_weights_fails(tmp_path):
    task = Regression(guard=PATIENT)

    def spoil(step):
        if step == 12:
            next(task.model.parameters()).data.fill_(math.inf)

    task.before_step = spoil
    with pytest.raises(TrainingDiverged, match="weights that are not finite, at step 15 of 15"):
        run(task, tmp_path)


def test_a_run_whose_last_evaluation_is_nan_fails(tmp_path):
    task = Regression()
    task.evaluate = lambda interrupted, final: {"loss": math.nan if final else 1.0}
    with pytest.raises(
        TrainingDiverged, match="the last evaluation gives loss nan, at step 15 of 15"
    ):
        run(task, tmp_path)


def test_skipped_steps_are_counted_across_an_interruption(tmp_path):
    def poisoned():
        task = Regression(guard=SKIP)
        task.poison |= {3: math.nan, 8: math.nan}
        return task

    whole = poisoned()
    run(whole, tmp_path / "whole")
    stop, first = StopRequest(), poisoned()

    def request_stop(step):
        if step == 5:
            stop.signal = 15

    first.before_step = request_stop
    with pytest.raises(TrainingStopped):
        run(first, tmp_path / "cut", stop=stop)
    second = poisoned()
    trainer, _ = run(second, tmp_path / "cut")
    assert trainer.state.loss_statistics.skipped == 2
    assert equal_weights(whole.model, second.model)
    journals = [tmp_path / name / journal.JOURNAL for name in ("whole", "cut")]
    assert journals[0].read_bytes() == journals[1].read_bytes()


def test_a_loss_spike_is_skipped_if_the_guard_has_a_threshold(tmp_path):
    spike = Guard(policy="skip", max_skips=1, spike=20.0)
    for folder, guard, skipped in (("on", spike, 1), ("off", SKIP, 0)):
        task = Regression(epochs=30, batch_norm=False, guard=guard)
        task.poison[120] = 1e4
        trainer, _ = run(task, tmp_path / folder)
        assert trainer.state.loss_statistics.skipped == skipped


def test_the_best_checkpoint_is_kept_with_the_last_two(tmp_path):
    class Scored(Regression):
        scores = iter([1.0, 5.0, 3.0, 2.0, 4.0])

        def evaluate(self, interrupted=never, *, final=True):
            return {"top1": next(self.scores)}

    trainer, _ = run(Scored(epochs=5), tmp_path)
    names = [CheckpointName.of(path) for path in checkpoints_in(trainer.checkpoints)]
    assert [(name.step, name.epochs) for name in names] == [(25, 5), (20, 4), (10, 2)]
    assert checkpoint.load_newest(trainer.checkpoints).facts["best"] == 5.0


def test_a_checkpoint_that_cannot_be_written_ends_the_training(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="checkpoints"):
        run(Regression(), tmp_path)


def test_random_draws_in_the_model_depend_on_the_batch_key_alone(tmp_path):
    calls = []

    class Spy(Regression):
        def loss(self, model, batch):
            calls.append((batch.key, torch.initial_seed()))
            return super().loss(model, batch)

    run(Spy(), tmp_path)
    assert calls == [(key, derive_seed(3, "model", *key)) for key, _ in calls]
    assert len({seed for _, seed in calls}) == len(calls) == 15


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(tmp_path, precision):
    task = Regression(epochs=20, batch_norm=False)
    task.recipe = task.recipe.model_copy(update={"precision": precision})
    before = task.evaluate()["loss"]
    trainer, metrics = run(task, tmp_path)
    assert metrics["loss"] < 0.5 * before
    assert trainer.state.scaler.is_enabled() == (precision == "fp16")
    assert all(p.dtype == torch.float32 for p in task.model.parameters())


# --- the watchdog --------------------------------------------------------------------------------


def hang(folder):
    """Train, and sleep in a step until the watchdog ends the process."""
    logging.basicConfig()
    task = Regression()

    def sleep_in_step(step):
        if step == 7:
            time.sleep(PATIENCE)

    task.before_step = sleep_in_step
    run(task, folder, stall=4.0)


def test_a_hanging_training_logs_its_stacks_and_exits_as_resumable(tmp_path):
    process = forkserver.run(
        "tests.unit.engine.test_trainer", str(tmp_path), cwd=ROOT, env=dict(os.environ)
    )
    assert process.returncode == 75, process.stderr
    assert "no step for" in process.stderr
    stacks = (tmp_path / "stacks-rank0.txt").read_text()
    assert "stacks of rank 0" in stacks and "sleep_in_step" in stacks
    whole, task = Regression(), Regression()
    run(whole, tmp_path / "whole")
    run(task, tmp_path)
    assert equal_weights(whole.model, task.model)


if __name__ == "__main__":
    hang(Path(sys.argv[1]))
