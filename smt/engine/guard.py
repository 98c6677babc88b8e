"""What is done with a step whose loss or gradient is not finite or jumps: the recipe's guard."""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from smt.config.recipes import Guard, Recipe
from smt.errors import TrainingError

log = logging.getLogger(__name__)

_WARMUP_STEPS = 100
"""Steps before which the running mean of the loss is too young to tell a spike."""

_DECAY = 0.99
"""Of the running mean and deviation: a memory of about 100 steps."""


class TrainingDiverged(TrainingError):
    """More bad steps than the recipe allows; to resume would give the same."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class LossStatistics:
    """Running statistics of the loss over the steps so far: part of a training's state."""

    mean: float = 0.0
    """Running mean of the loss."""
    deviation: float = 0.0
    """Running mean of the loss's distance from its mean."""
    steps: int = 0
    """Steps in both."""
    skipped: int = 0
    """Steps that were skipped."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "LossStatistics":
        """Return what `facts` gave."""
        return cls(**facts)

    @property
    def facts(self) -> dict[str, Any]:
        """Everything in it, as JSON values."""
        return asdict(self)

    def after(self, loss: float) -> "LossStatistics":
        """Return the statistics with one more step."""
        if self.steps == 0:
            return replace(self, mean=loss, steps=1)
        distance = abs(loss - self.mean)
        return replace(
            self,
            mean=_DECAY * self.mean + (1 - _DECAY) * loss,
            deviation=_DECAY * self.deviation + (1 - _DECAY) * distance,
            steps=self.steps + 1,
        )

    def is_spike(self, loss: float, factor: float) -> bool:
        """Return whether `loss` is further above the mean than `factor` the deviation."""
        return self.steps >= _WARMUP_STEPS and loss - self.mean > factor * self.deviation


def problem_of_loss(guard: Guard, statistics: LossStatistics, loss: float) -> str | None:
    """Return what is wrong with the mean loss of a global step, in a phrase, or None."""
    if not math.isfinite(loss):
        return f"the loss is not finite ({loss})"
    if guard.spike is not None and statistics.is_spike(loss, guard.spike):
        return f"the loss jumped to {loss:.4g} from a mean of {statistics.mean:.4g}"
    return None


def problem_of_gradient(norm: float, loss_scale: float | None) -> str | None:
    """Return what is wrong with a gradient of L2 norm `norm`, in a phrase, or None.

    With a loss scaler (`loss_scale` is its scale) an infinite gradient is normal: the scaler skips
    the step and lowers its scale. A scale below 1 is not.
    """
    if loss_scale is None:
        return None if math.isfinite(norm) else f"the gradient is not finite (norm {norm})"
    return None if loss_scale >= 1 else f"the loss scale of fp16 fell to {loss_scale:.3g}"


def problem_of_end(statistics: LossStatistics, weights: Iterable[Tensor]) -> str | None:
    """Return what is wrong with a training after its last step, in a phrase, or None.

    A run of fewer steps than the recipe may skip comes to its end even if none was of use.
    """
    if statistics.steps == 0:
        return f"all {statistics.skipped} steps were skipped"
    if not all(bool(weight.isfinite().all()) for weight in weights):
        return "there are weights that are not finite"
    return None


def problem_of_metrics(metrics: Mapping[str, float]) -> str | None:
    """Return what is wrong with the last evaluation, or None: JSON and tables hold no NaN."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            return f"the last evaluation gives {name} {value}"
    return None


def skip(
    recipe: Recipe, statistics: LossStatistics, problem: str, step: int, where: str
) -> LossStatistics:
    """Return the statistics after step `step` was left out; `where` says how far along that is.

    Raises:
        TrainingDiverged: the recipe's guard stops at such a step, or has skipped as many as it may.
    """
    guard = recipe.guard
    if guard.policy == "skip" and statistics.skipped < guard.max_skips:
        skipped = statistics.skipped + 1
        log.warning("step skipped: %s %s; %d of at most %d", problem, where, skipped,
                    guard.max_skips)  # fmt: skip
        return replace(statistics, skipped=skipped)
    after = f", after {statistics.skipped} skipped steps" if guard.policy == "skip" else ""
    raise diverged(recipe, f"{problem} {where}{after}", step)


def diverged(recipe: Recipe, problem: str, step: int) -> TrainingDiverged:
    """Return the error that says so, with what to do."""
    return TrainingDiverged(
        f"{problem}; lower optimizer.lr or raise {recipe.WARMUP} in params/{recipe.FILE}, or use "
        "precision bf16 or fp32",
        step,
    )
