"""The final numbers of a run, from its journal alone, and how long its recorded recipe trains.

Recipes are read as the JSON that provenance is, not as classes of `smt.config`: what was trained
with older params has to be readable too.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smt.runs import journal


@dataclass(frozen=True)
class Line:
    """One line of a journal."""

    number: int
    """From 1."""
    step: int
    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Derived:
    """The final numbers of a run as its journal gives them."""

    metrics: Mapping[str, float]
    """By the names of metrics.json."""
    epochs: int
    steps: int
    skipped_steps: int
    source: str
    """The line that the metrics stand in."""


def lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a finished journal.

    Raises:
        ValueError: one of them is damaged; the message says which.
    """
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        try:
            line = json.loads(text)
            found = Line(number, int(line["step"]), int(line["epoch"]), dict(line["metrics"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"line {number} is damaged") from None
        if not text.endswith(b"\n"):
            raise ValueError(f"line {number} is not whole")
        yield found


def derive(work_dir: Path) -> Derived:
    """Return the final numbers: those of the last evaluation, or the last loss without any.

    Raises:
        ValueError: the journal is damaged, or ends in neither.
        OSError: it cannot be read.
    """
    last = evaluated = trained = None
    skipped = 0
    for line in lines(work_dir / journal.JOURNAL):
        last = line
        evaluated = line if any(key.startswith("eval/") for key in line.metrics) else evaluated
        trained = line if "train/loss" in line.metrics else trained
        skipped = int(line.metrics.get("train/skipped_steps", skipped))
    if last is None or (evaluated is None and trained is None):
        raise ValueError("there is neither an evaluation nor a loss in it")
    if evaluated is not None:
        found, what = evaluated, "the last evaluation"
        metrics = {
            key.removeprefix("eval/"): value
            for key, value in evaluated.metrics.items()
            if key.startswith("eval/")
        }
    else:
        assert trained is not None
        found, what = trained, "the last loss"
        metrics = {"train_loss": trained.metrics["train/loss"]}
    source = f"{work_dir / journal.JOURNAL}, line {found.number} ({what})"
    return Derived(metrics, last.epoch, last.step, skipped, source)


def schedule_epochs(schedule: Mapping[str, Any]) -> int:
    """Return the epochs of a schedule; a segmenter's are intervals of so many steps.

    Raises:
        KeyError: it states neither epochs nor steps and their interval.
    """
    if "interval" in schedule:
        return int(schedule["steps"]) // max(int(schedule["interval"]), 1)
    return int(schedule["epochs"])


def schedule_length(schedule: Mapping[str, Any]) -> str:
    """Return a schedule's length in the unit that its recipe states it in.

    Raises:
        KeyError: as `schedule_epochs` does.
    """
    if "interval" in schedule:
        return f"steps: {schedule['steps']}, evaluated every {schedule['interval']}"
    return f"epochs: {schedule['epochs']}"
