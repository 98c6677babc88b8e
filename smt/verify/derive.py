"""The final numbers of a run, from its journal alone, and the length of its recorded schedule.

Recipes are read as the JSON that provenance is, not as classes of `smt.config`: what was trained
with older params has to be readable too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smt.runs import journal


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


def derive(work_dir: Path) -> Derived:
    """Return the final numbers: those of the last evaluation, or the last loss without any.

    Raises:
        ValueError: the journal is damaged, or ends in neither.
        OSError: it cannot be read.
    """
    last = evaluated = trained = None
    skipped = 0
    for line in journal.lines(work_dir, finished=True):
        last = line
        evaluated = line if line.evaluation else evaluated
        trained = line if "train/loss" in line.metrics else trained
        skipped = int(line.metrics.get("train/skipped_steps", skipped))
    final = evaluated or trained
    if last is None or final is None:
        raise ValueError("there is neither an evaluation nor a loss in it")
    metrics = final.evaluation or {"train_loss": final.metrics["train/loss"]}
    kind = "evaluation" if final.evaluation else "loss"
    source = f"{work_dir / journal.JOURNAL}, line {final.number} (the last {kind})"
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
