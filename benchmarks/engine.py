"""Overhead of exact resume and of checkpoints, against a bare loop and `torch.save`.

`python benchmarks/engine.py` prints three things. Time a training step of the engine (keyed draws,
guard, journal, watchdog, checkpoints every 50 steps) over that of a bare loop on the same model and
batches, on one CPU thread. How long a checkpoint blocks a training, against
torch.save. And how long the first batch takes at the end of an epoch's steps, against its start
and against reading the epoch up to there.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from data import project_of, write_photographs

from smt.config.load import load_project
from smt.data.classification import TrainLoader
from smt.data.imagenet import ImageFolder
from smt.datasets import manifest, manifest_writer
from smt.engine import checkpoint, optim
from smt.engine.distributed import Ranks
from smt.engine.preempt import StopRequest
from smt.engine.progress import Progress
from smt.engine.protocol import MicroBatch, never
from smt.engine.trainer import Settings, Trainer
from smt.engine.training_state import TrainingState
from smt.models import zoo
from smt.runs.paths import Layout, bundled_params

ONE = Ranks(0, 1, torch.device("cpu"))
EVERY = 50
"""Steps between two checkpoints: far more often than a real training writes them."""


class Repeated:
    """SMT-T on one batch of noise, again and again: only the loop around it is measured."""

    headline = "top1"

    def __init__(self, scale: str, batch: int, resolution: int, steps: int) -> None:
        project = load_project(bundled_params(), scale)
        recipe = project.recipes["imagenet1k"]
        schedule = recipe.schedule.model_copy(update={"epochs": 1, "warmup_epochs": 0})
        self.recipe = recipe.model_copy(update={"precision": "fp32", "schedule": schedule})
        torch.manual_seed(0)
        model = zoo.build(project.models["smt_tiny"], num_classes=10, drop_path_rate=0.1)
        self.model = model.to(memory_format=torch.channels_last)
        images = torch.randn(batch, 3, resolution, resolution)
        self.inputs = images.to(memory_format=torch.channels_last), torch.rand(batch, 10)
        self.steps_per_epoch, self.accumulation_steps = steps, 1

    def micro_batches(self, epoch: int, start_step: int) -> Iterator[MicroBatch]:
        for step in range(start_step, self.steps_per_epoch):
            yield MicroBatch(self.inputs, len(self.inputs[0]), (epoch, step, 0))

    def loss(self, model: torch.nn.Module, batch: MicroBatch) -> torch.Tensor:
        images, targets = batch.loss_inputs
        return F.cross_entropy(model(images), targets)

    def evaluate(
        self, interrupted: Callable[[], bool] = never, *, final: bool = True
    ) -> dict[str, float]:
        return {}


def engine_seconds(task: Repeated) -> float:
    """Return seconds of a training by this project's engine, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            task, Path(folder), seed=0, ranks=ONE, settings=Settings(10, 600.0, EVERY),
            stop=StopRequest(),
        )  # fmt: skip
        progress = Progress("", epochs=1, epoch_images=1, ranks=ONE)
        start = time.perf_counter()
        trainer.train(progress)
        return time.perf_counter() - start


def bare_loop_seconds(task: Repeated) -> float:
    """Return seconds of the same steps in a bare loop: no draws, no journal, no checkpoint."""
    optimizer = optim.adamw(task.model, task.recipe.optimizer)
    parameters = list(task.model.parameters())
    images, targets = task.inputs
    total = 0.0
    start = time.perf_counter()
    for step in range(task.steps_per_epoch):
        rate = optim.learning_rate(task.recipe, step, task.steps_per_epoch)
        optim.set_learning_rate(optimizer, rate)
        loss = F.cross_entropy(task.model(images), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.item()
    return time.perf_counter() - start


def compare_loops(scale: str, batch: int, resolution: int, steps: int, rounds: int) -> None:
    """Print both loops' time a step and their ratio, round by round in turn."""
    ratios, engine, plain = [], [], []
    for round_ in range(rounds + 1):
        pair = {}
        # In turn, with the other one first in every second round.
        for run in sorted((engine_seconds, bare_loop_seconds), key=id, reverse=bool(round_ % 2)):
            pair[run] = run(Repeated(scale, batch, resolution, steps))
        if round_:  # the first one warms up
            engine.append(pair[engine_seconds] / steps)
            plain.append(pair[bare_loop_seconds] / steps)
            ratios.append(engine[-1] / plain[-1])
    print(
        f"SMT-T, {scale} scale, {resolution} pixels, batch {batch}: engine "
        f"{1000 * statistics.median(engine):.1f} ms a step, bare loop "
        f"{1000 * statistics.median(plain):.1f} ms, ratio {statistics.median(ratios):.3f} "
        f"(rounds {min(ratios):.3f} to {max(ratios):.3f})"
    )


def pauses(model: str, rounds: int) -> None:
    """Print how long a checkpoint blocks a training, and how long torch.save does."""
    project = load_project(bundled_params(), "paper")
    network = zoo.build(project.models[model], num_classes=1000, drop_path_rate=0.1)
    state = TrainingState(network, optim.adamw(network, project.recipes["imagenet1k"].optimizer),
                  torch.amp.GradScaler("cpu", enabled=False))  # fmt: skip
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    blocked, saved_to_disk, plain = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = checkpoint.Writer(folder)
        for round_ in range(rounds + 1):
            state.step += 1
            start = time.perf_counter()
            writer.submit(state.snapshot(), None, (), before=lambda: None, after=lambda: None)
            copied = time.perf_counter()
            writer.wait()
            on_disk = time.perf_counter()
            torch.save(
                {"model": network.state_dict(), "optimizer": state.optimizer.state_dict()},
                folder / "plain.pt",
            )
            saved = time.perf_counter()
            if round_:  # the first one takes the memory
                blocked.append(copied - start)
                saved_to_disk.append(on_disk - start)
                plain.append(saved - on_disk)
        writer.close()
    print(
        f"{model}, checkpoint of {state.bytes / 2**20:.0f} MB: training stands still "
        f"{1000 * statistics.median(blocked):.0f} ms (longest {1000 * max(blocked):.0f}), on disk "
        f"with digest after {1000 * statistics.median(saved_to_disk):.0f} ms; torch.save, which "
        f"blocks training all along and does not sync, {1000 * statistics.median(plain):.0f} ms; "
        f"ratio {statistics.median(a / b for a, b in zip(blocked, plain, strict=True)):.2f}"
    )


def first_batch(images: int, rounds: int) -> None:
    """Print how long the first batch takes late in an epoch, against its start and a replay."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_photographs(root, (56, 56), images)
        project, recipe = project_of(root, images, 32)
        layout = Layout("paper", results=root / "results", data=root)
        manifest_writer.write(project, layout, "photographs")
        folder = ImageFolder(root, "train", manifest.read(layout, "photographs"))
        loader = TrainLoader(folder, recipe, seed=0, rank=0, world_size=1, workers=0)
        late = loader.steps_per_epoch - 1
        ways = {
            "start": lambda: next(iter(loader.batches(0))),
            "late": lambda: next(iter(loader.batches(0, late))),
            "replay": lambda: next(itertools.islice(loader.batches(0), late, None)),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, read in ways.items():
                start = time.perf_counter()
                read()
                times[way].append(time.perf_counter() - start)
    start, end, replay = (1000 * statistics.median(times[way]) for way in ways)
    print(
        f"first batch at step 0: {start:.1f} ms; at step {late}: {end:.1f} ms, "
        f"{end / start:.2f} of it; by reading the steps before: {replay:.0f} ms, "
        f"{replay / start:.0f} times"
    )


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each comparison [7]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compare_loops("demo", 64, 32, 200, arguments.rounds)
    compare_loops("paper", 4, 224, 12, max(arguments.rounds // 2, 1))
    for model in ("smt_tiny", "smt_base"):
        pauses(model, arguments.rounds)
    first_batch(2048, arguments.rounds)


if __name__ == "__main__":
    main()
