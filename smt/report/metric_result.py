"""One metric of an experiment: reported value, reproduced value and verdict."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from smt.config.metrics import HEADLINES
from smt.config.published import ReportedValue
from smt.report.collect import Results, RunResult
from smt.report.spread import Spread
from smt.report.verdict import Summary, Verdict, delta, judge, summarise
from smt.runs.journal import Evaluation


@dataclass(frozen=True)
class MetricResult:
    """One metric of an experiment: reported and reproduced value, verdict and interval."""

    experiment: str
    metric: str
    reported: ReportedValue | None
    summary: Summary | None
    spread: Spread | None
    verdict: Verdict
    best: tuple[Evaluation, ...] = ()
    """The best evaluation of each seed that is done; empty unless all have one."""

    @property
    def best_mean(self) -> float | None:
        """Mean over seeds of the metric at the best epoch of each, if all have one."""
        if not self.best:
            return None
        return statistics.fmean(evaluation.metrics[self.metric] for evaluation in self.best)

    @property
    def interval(self) -> float | None:
        """Half the width of the prediction interval around the mean, if there is one."""
        if self.summary is None or self.spread is None:
            return None
        return self.spread.interval(self.summary.n)

    @property
    def is_of_others(self) -> bool:
        """Whether the interval rests on other experiments of the recipe alone."""
        return self.spread is not None and self.experiment not in self.spread.experiments

    @property
    def basis(self) -> str:
        """What the interval rests on, in a phrase; empty without one."""
        if self.interval is None or self.spread is None:
            return ""
        count = len(self.spread.experiments)
        if self.is_of_others:
            return f"{count} other experiment{'s' if count > 1 else ''}"
        return f"this and {count - 1} more" if count > 1 else "its own seeds"

    @property
    def delta(self) -> float | None:
        if self.reported is None or self.summary is None:
            return None
        return delta(self.summary.mean, self.reported.value)


def metric_result(results: Results, experiment: str, metric: str, table: str) -> MetricResult:
    """Return one metric of an experiment, with the tolerance and published number of `table`.

    Where that is empty the tolerance is 0.
    """
    project, runs = results.project, results.of(experiment)
    comparable = project.scale.notice is None
    summary = summary_of(runs, metric)
    reported = project.reported_value(experiment, metric, table)
    spread = results.spread(experiment, metric) if comparable else None
    verdict = judge(
        summary,
        reported.value if reported else None,
        spread,
        tolerance=project.tables[table].tolerance if table else 0.0,
        comparable=comparable,
    )
    best = best_of(runs, metric) if has_best(metric) else ()
    return MetricResult(experiment, metric, reported, summary, spread, verdict, best)


def summary_of(runs: Sequence[RunResult], metric: str) -> Summary | None:
    """Return a metric over the runs that are done and have it."""
    return summarise([run.metrics[metric] for run in runs if metric in run.metrics])


def reported_kind(reported: ReportedValue | None) -> str:
    """Return whether a number is printed by its source or was worked out from it."""
    if reported is None:
        return ""
    return "derived" if reported.derived_for else "published"


def has_best(metric: str) -> bool:
    """Return whether the best epoch of a run is chosen by this metric."""
    return metric in HEADLINES.values()


def best_of(runs: Sequence[RunResult], metric: str) -> tuple[Evaluation, ...]:
    """Return the best evaluation of each run that has the metric, or none of any.

    A mean of some seeds does not belong beside one of all, and of a run that was evaluated once the
    best is the last.
    """
    done = [run.best for run in runs if metric in run.metrics]
    best = [one for one in done if one is not None and one.evaluations > 1]
    return tuple(best) if len(best) == len(done) else ()
