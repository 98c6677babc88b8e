"""Whether unfinished runs are on track, from journals, so that a bad run is noticed early.

The last two evaluations of a run are compared with a band. Two or more seeds of its experiment that
are done give it, at the same epoch: their mean, and around it the larger of `spreads` sample
standard deviations and a floor. With fewer, the reference points of `params/trajectory.yaml` do,
with straight lines between them: learning curves bend the other way, so these are lenient. With
neither, there is no verdict. Only the bad side of the band counts. The metric is top-1, or the
training loss of a run that is never evaluated.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import get_args

from smt.config.experiments import Run
from smt.config.project import Project
from smt.config.trajectory import ASSUMED, Measure, Trajectory
from smt.runs import journal
from smt.runs.paths import Layout
from smt.tracking.client import Point

MEASURES: tuple[Measure, ...] = get_args(Measure)
"""The one to judge by first."""
LABELS: Mapping[Measure, str] = {"top1": "top-1", "loss": "training loss"}
DECIMALS: Mapping[Measure, int] = {"top1": 1, "loss": 3}
HIGHER_IS_BETTER: Mapping[Measure, bool] = {"top1": True, "loss": False}

IN_A_ROW = 2
"""Last values that have to be on the wrong side: a single one is often noise. Of the demo's three
seeds one falls 15 points below the others for one epoch, and ends where they do."""

FEWEST = 2
"""Earlier runs that a spread can be taken of."""

Series = Mapping[float, float]
"""Values of a metric by the epochs done."""


@dataclass(frozen=True)
class OffTrack:
    """A run under way that is on the wrong side of its band."""

    metric: Measure
    value: float
    epoch: float
    """Epochs done when it was measured."""
    low: float
    high: float
    source: str
    """Where the band comes from, in a phrase."""

    @property
    def text(self) -> str:
        """The warning, in one line."""
        value, low, high = (
            f"{number:.{DECIMALS[self.metric]}f}" for number in (self.value, self.low, self.high)
        )
        return (
            f"off track: {LABELS[self.metric]} {value} at epoch {self.epoch:g}, "
            f"reference {low} to {high} ({self.source})"
        )


@dataclass(frozen=True)
class Band:
    """Where good runs are at one moment of their training."""

    at: float
    """Fraction of the epochs."""
    low: float
    high: float
    source: str


def off_track(
    project: Project, layout: Layout, done: Mapping[Run, str], under_way: Mapping[Run, str]
) -> dict[Run, OffTrack]:
    """Return the warning of each run under way that is off track; both hold fingerprints."""
    journals = _Journals(project, layout, done)
    verdicts = {run: journals.judge(run, fingerprint) for run, fingerprint in under_way.items()}
    return {run: verdict for run, verdict in verdicts.items() if verdict is not None}


class _Journals:
    """Runs as their journals have them; each is read once."""

    def __init__(self, project: Project, layout: Layout, done: Mapping[Run, str]) -> None:
        self.project, self.layout, self.done = project, layout, done
        self.series = cache(self._series)
        self.bands = cache(self._bands)

    def _series(self, run: Run, fingerprint: str) -> Mapping[Measure, Series]:
        """Return the series of each measure in a journal; empty if it cannot be read."""
        try:
            lines = journal.read(self.layout.work_dir(run, fingerprint), 0.0)
        except (ValueError, KeyError):
            return {}
        losses = [
            Point("train/loss", line.metrics["train/loss"], 0, line.step)
            for line in lines
            if "train/loss" in line.metrics
        ]
        top1 = {
            float(line.epoch): line.metrics["eval/top1"]
            for line in lines
            if "eval/top1" in line.metrics
        }
        steps = self.project.steps_per_epoch(run.experiment)
        return {"top1": top1, "loss": epoch_means(losses, steps)}

    def _bands(self, experiment: str, metric: Measure) -> tuple[Band, ...]:
        """Return the band of the seeds that are done, else that of params, else nothing."""
        done = [
            self.series(*entry) for entry in self.done.items() if entry[0].experiment == experiment
        ]
        measured = [entry[metric] for entry in done if entry.get(metric)]
        if len(measured) < FEWEST:
            return reference_bands(self.project, experiment, metric)
        return measured_bands(measured, self._epochs(experiment), metric, self.project.trajectory)

    def _epochs(self, experiment: str) -> int:
        return self.project.recipe_of(experiment).schedule.epochs

    def judge(self, run: Run, fingerprint: str) -> OffTrack | None:
        """Return the warning of a run that is off track, or None."""
        measures = self.series(run, fingerprint)
        metric = next((measure for measure in MEASURES if measures.get(measure)), None)
        if metric is None:
            return None
        series, bands = measures[metric], self.bands(run.experiment, metric)
        deviations = [self._off(run, metric, series, bands, epoch) for epoch in sorted(series)]
        last = deviations[-IN_A_ROW:]
        return last[-1] if len(last) == IN_A_ROW and all(last) else None

    def _off(
        self, run: Run, metric: Measure, series: Series, bands: tuple[Band, ...], epoch: float
    ) -> OffTrack | None:
        """Return the warning of a run at one epoch, or None where it is on track or not judged."""
        share = epoch / self._epochs(run.experiment)
        band = band_at(bands, share) if share >= self.project.trajectory.begin else None
        if band is None or _is_on_track(metric, series[epoch], band):
            return None
        return OffTrack(metric, series[epoch], epoch, band.low, band.high, band.source)


def epoch_means(points: Iterable[Point], steps: int) -> dict[float, float]:
    """Return the mean of a metric over each whole epoch of `steps`, by the epochs done.

    A point holds the mean since the point before, so it counts by the steps between them.
    """
    totals: dict[int, float] = {}
    whole: dict[float, float] = {}
    before = 0
    for point in points:
        epoch = -(-point.step // steps)
        totals[epoch] = totals.get(epoch, 0.0) + point.value * (point.step - before)
        before = point.step
        if point.step == epoch * steps:
            whole[float(epoch)] = totals[epoch] / steps
    return whole


def _is_on_track(metric: Measure, value: float, band: Band) -> bool:
    """Return whether a value is on the good side of a band's bad edge; NaN is not."""
    return value >= band.low if HIGHER_IS_BETTER[metric] else value <= band.high


def measured_bands(
    series: Sequence[Series], epochs: int, metric: Measure, rule: Trajectory
) -> tuple[Band, ...]:
    """Return the band around runs that are done, at each epoch for which all have a finite value.

    `epochs` is how many such a run has.
    """
    bands = []
    for epoch in sorted(set(series[0]).intersection(*series[1:])):
        values = [seed[epoch] for seed in series]
        if not all(map(math.isfinite, values)):
            continue
        mean = statistics.fmean(values)
        half = max(rule.spreads * statistics.stdev(values), getattr(rule.floors, metric))
        source = f"{len(values)} seeds that are done"
        bands.append(Band(epoch / epochs, mean - half, mean + half, source))
    return tuple(bands)


def reference_bands(project: Project, experiment: str, metric: Measure) -> tuple[Band, ...]:
    """Return the reference points of params for this scale, earliest first."""
    sources = project.reported.sources
    points = project.trajectory.points.get(project.scale_name, {}).get(experiment, ())
    return tuple(
        Band(
            point.at,
            point.value - point.tolerance,
            point.value + point.tolerance,
            ASSUMED if point.source == ASSUMED else sources[point.source].title,
        )
        for point in sorted(points, key=lambda point: point.at)
        if point.metric == metric
    )


def band_at(bands: tuple[Band, ...], at: float) -> Band | None:
    """Return the band at a fraction of the epochs, on straight lines between those that are given.

    None before the first; the last one holds to the end.
    """
    if not bands or at < bands[0].at:
        return None
    for left, right in pairwise(bands):
        if at < right.at:
            share = (at - left.at) / (right.at - left.at)
            low = left.low + share * (right.low - left.low)
            high = left.high + share * (right.high - left.high)
            return Band(at, low, high, left.source)
    return bands[-1]
