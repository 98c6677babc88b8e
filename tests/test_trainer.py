"""The training loop on a small task of its own: a real model, optimizer and files."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smt.data.rng import derive, seeded
from smt.engine import checkpoint
from smt.engine.distributed import Ranks
from smt.engine.preempt import StopRequest
from smt.engine.progress import Progress
from smt.engine.protocol import Batch
from smt.engine.trainer import NotFinite, Settings, Stopped, Trainer
from smt.layout import bundled_params
from smt.params import load_project
from smt.tracking import journal

DEMO = load_project(bundled_params(), "demo").recipes["imagenet1k"]
ONE = Ranks(0, 1, torch.device("cpu"))


class Regression:
    """Learns a fixed linear map through BatchNorm and dropout; all data are keyed draws."""

    headline = "top1"

    def __init__(self, *, accumulation=1, batch_norm=True, dropout=0.1, epochs=3, lr=1e-2):
        torch.manual_seed(0)
        layers = [nn.Linear(8, 16), nn.BatchNorm1d(16) if batch_norm else nn.Identity()]
        self.model = nn.Sequential(*layers, nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 1))
        self.recipe = DEMO.model_copy(
            update={
                "schedule": DEMO.schedule.model_copy(update={"epochs": epochs}),
                "optimizer": DEMO.optimizer.model_copy(update={"lr": lr}),
            }
        )
        self.steps_per_epoch, self.accumulation = 5, accumulation
        self.poison_step = None
        self.before_step = lambda step: None

    def batches(self, epoch, start_step):
        for step in range(start_step, self.steps_per_epoch):
            self.before_step(epoch * self.steps_per_epoch + step)
            with seeded(1, epoch, step):
                inputs = torch.randn(16, 8)
            if self.poison_step == epoch * self.steps_per_epoch + step:
                inputs[3, 3] = math.nan
            part = 16 // self.accumulation
            for index, chunk in enumerate(inputs.split(part)):
                targets = chunk.sum(1, keepdim=True)
                yield Batch((chunk, targets), part, (epoch, step, index))

    def loss(self, model, batch):
        inputs, targets = batch.loss_inputs
        return F.mse_loss(model(inputs), targets)

    def evaluate(self):
        self.model.eval()
        with seeded(2), torch.no_grad():
            inputs = torch.randn(64, 8)
            value = F.mse_loss(self.model(inputs), inputs.sum(1, keepdim=True)).item()
        self.model.train()
        return {"loss": value}


def trainer(task, folder, stop=None, log_every=2, seconds=1e9):
    folder.mkdir(exist_ok=True)
    return Trainer(
        task, folder, seed=3, ranks=ONE, settings=Settings(log_every, seconds),
        stop=stop or StopRequest(),
    )  # fmt: skip


def run(task, folder, **options):
    made = trainer(task, folder, **options)
    with Progress("test", epochs=3, epoch_images=80, ranks=ONE) as progress:
        return made, made.train(progress)


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_it_learns(tmp_path):
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


@pytest.mark.parametrize("stop_at", [0, 1, 4, 5, 7, 14])
def test_stopped_anywhere_and_resumed_it_ends_with_the_same_bytes(tmp_path, stop_at):
    whole = Regression()
    run(whole, tmp_path / "whole")
    stop = StopRequest()
    first = Regression()

    def ask(step):
        if step == stop_at:
            stop.signal = 15

    first.before_step = ask
    with pytest.raises(Stopped):
        run(first, tmp_path / "cut", stop=stop)
    torch.rand(7)  # what happens between the two must not matter
    second = Regression()
    resumed, _ = run(second, tmp_path / "cut")
    assert same(whole.model, second.model)
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
    assert checkpoint.newest(tmp_path / "cut" / "checkpoints").step == 5
    second = Regression()
    run(second, tmp_path / "cut")
    assert same(whole.model, second.model)
    journals = [tmp_path / name / journal.JOURNAL for name in ("whole", "cut")]
    assert journals[0].read_bytes() == journals[1].read_bytes()


def test_a_finished_run_only_evaluates(tmp_path):
    _, metrics = run(Regression(), tmp_path)
    task = Regression()
    task.before_step = lambda step: pytest.fail("a step was taken")
    _, again = run(task, tmp_path)
    assert again == metrics


def test_accumulation_gives_the_step_of_the_whole_batch(tmp_path):
    whole = Regression(batch_norm=False, dropout=0.0)
    parts = Regression(batch_norm=False, dropout=0.0, accumulation=4)
    run(whole, tmp_path / "whole")
    run(parts, tmp_path / "parts")
    for first, second in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_with_step_and_rate(tmp_path):
    task = Regression()
    task.poison_step = 7
    with pytest.raises(NotFinite, match=r"step 7 of 15, learning rate 0\.00\d+") as raised:
        run(task, tmp_path)
    assert raised.value.step == 7


def test_checkpoints_come_in_time_as_well(tmp_path):
    task, steps = Regression(epochs=1), []
    original = checkpoint.write

    def remember(folder, state, best_step):
        steps.append(state.step)
        return original(folder, state, best_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", remember)
        run(task, tmp_path, seconds=0.0)
    assert steps == [0, 1, 2, 3, 4, 5, 5]


def test_the_best_checkpoint_is_kept_with_the_last_two(tmp_path):
    class Scored(Regression):
        scores = iter([1.0, 5.0, 3.0, 2.0, 4.0])

        def evaluate(self):
            return {"top1": next(self.scores)}

    made, _ = run(Scored(epochs=5), tmp_path)
    kept = [checkpoint.step_of(path) for path in checkpoint.names(made.checkpoints)]
    assert kept == [25, 20, 10]
    assert checkpoint.newest(made.checkpoints).facts["best"] == 5.0


def test_a_checkpoint_that_cannot_be_written_ends_the_training(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="checkpoints"):
        run(Regression(), tmp_path)


def test_draws_inside_the_model_do_not_depend_on_history(tmp_path):
    calls = []

    class Spy(Regression):
        def loss(self, model, batch):
            calls.append((batch.key, torch.initial_seed()))
            return super().loss(model, batch)

    run(Spy(), tmp_path)
    assert calls == [(key, derive(3, "model", *key)) for key, _ in calls]
    assert len({seed for _, seed in calls}) == len(calls) == 15


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(tmp_path, precision):
    task = Regression(epochs=20, batch_norm=False)
    task.recipe = task.recipe.model_copy(update={"precision": precision})
    before = task.evaluate()["loss"]
    made, metrics = run(task, tmp_path)
    assert metrics["loss"] < 0.5 * before
    assert made.state.scaler.is_enabled() == (precision == "fp16")
    assert all(p.dtype == torch.float32 for p in task.model.parameters())
