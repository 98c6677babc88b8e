"""Progress of a run: steps, speed and time left."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from smt.runs.journal import TimedLine
from smt.runs.workdir import WorkDirSnapshot

QUIET_SECONDS = 60.0
QUIET_STEPS = 10
"""A training is quiet after this long, and after as long as this many of its steps take."""

DATA_WAIT = "system/data_wait_percentage"
"""In a run's times: percent of the time of steps that its rank 0 waited for data."""

MOST_DATA_WAIT = 0.1
"""Part of its time that a training may wait for its data before that is said."""


@dataclass(frozen=True)
class Length:
    """Length of a run."""

    steps_per_epoch: int
    """Full global batches, as smt.data.sampler counts them."""
    epochs: int
    global_batch: int

    @property
    def steps(self) -> int:
        """Global steps of the whole run."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Progress:
    """Progress of a run at one moment."""

    length: Length
    step: int
    """Global steps done."""
    rate: float | None = None
    """Steps per second over about the last epoch, evaluation included; None where not known."""
    silence: float | None = None
    """Seconds since it last did something; None where nobody trains it."""
    data_wait: float | None = None
    """Part of the time of steps over about the last epoch that it waited for data."""

    @property
    def epoch(self) -> int:
        """The epoch that it is in, from 1."""
        return min(self.step // self.length.steps_per_epoch + 1, self.length.epochs)

    @property
    def images_per_second(self) -> float | None:
        """Training images on all GPUs."""
        return None if self.rate is None else self.rate * self.length.global_batch

    @property
    def is_quiet(self) -> bool:
        """Whether it has done nothing for longer than it should take."""
        if self.silence is None:
            return False
        usual = QUIET_STEPS / self.rate if self.rate else 0.0
        return self.silence > max(QUIET_SECONDS, usual)

    @property
    def waits_for_data(self) -> bool:
        """Whether it waits for its data for more of its time than it should."""
        return self.data_wait is not None and self.data_wait > MOST_DATA_WAIT

    @property
    def seconds_left(self) -> float | None:
        """Seconds to its last step at this rate; None where it is not known, or it is quiet."""
        if self.rate is None or self.is_quiet:
            return None
        return (self.length.steps - self.step) / self.rate


def of_running(
    length: Length, snapshot: WorkDirSnapshot, lines: Sequence[TimedLine], now: float
) -> Progress:
    """Return the progress of a run that its last attempt trains at `now` (Unix seconds)."""
    last = snapshot.beat.time if snapshot.beat else snapshot.started
    rate = _rate(length, snapshot, lines)
    return Progress(length, snapshot.step, rate, max(now - last, 0.0), _data_wait(length, lines))


def _rate(length: Length, snapshot: WorkDirSnapshot, lines: Iterable[TimedLine]) -> float | None:
    """Return steps per second since an epoch ago, or since the attempt began."""
    if snapshot.beat is None:
        return None
    step, time = snapshot.resumed_at, snapshot.started
    for line in lines:
        # What an attempt repeats keeps the time of the attempt that was there first.
        if time < line.time and line.step <= snapshot.beat.step - length.steps_per_epoch:
            step, time = line.step, line.time
    steps, seconds = snapshot.beat.step - step, snapshot.beat.time - time
    return steps / seconds if steps > 0 and seconds > 0 else None


def _data_wait(length: Length, lines: Sequence[TimedLine]) -> float | None:
    """Return the mean share of the lines of the last epoch.

    A single one may be of an epoch's first steps, which wait for the workers to start.
    """
    since = lines[-1].step - length.steps_per_epoch if lines else 0
    recent = (line.metrics.get(DATA_WAIT) for line in lines if line.step > since)
    shares = [share / 100 for share in recent if share is not None]
    return fmean(shares) if shares else None
