"""Cells and links of results and of their runs."""

from collections.abc import Sequence

from smt.config.metrics import METRICS
from smt.report.collect import Results, RunResult
from smt.report.format import exact, joined
from smt.report.grid import Cell, Span
from smt.report.metric_result import MetricResult, has_best


def best_cell(result: MetricResult) -> Cell:
    """Return the mean over seeds of their best evaluations."""
    if result.best_mean is None:
        return Cell.of("")
    return Cell.of(f"{result.best_mean:.{METRICS[result.metric].decimals}f}")


def best_record(result: MetricResult) -> dict[str, str]:
    """Return the same for a file, with the epochs."""
    if not has_best(result.metric):
        return {}
    return {
        f"{result.metric}_best": exact(result.best_mean),
        f"{result.metric}_best_epochs": joined(evaluation.epoch for evaluation in result.best),
    }


def interval_cell(result: MetricResult) -> Cell:
    """Return half the width of the prediction interval; a star where it is of other experiments."""
    if result.summary is None:
        return Cell.of("")
    if result.interval is None:
        return Cell.of("unknown")
    mark = " *" if result.is_of_others else ""
    return Cell.of(f"± {result.interval:.{METRICS[result.metric].decimals}f}{mark}")


def run_title(run: RunResult) -> str:
    """Return where a number is from, shown under a mouse."""
    remote = run.remote.run_id if run.remote else "none"
    return f"seed {run.run.seed}: MLflow run {remote}, fingerprint {run.fingerprint}"


def run_span(run: RunResult) -> Span:
    """Return a run with a link to its page."""
    if run.url is None or run.fingerprint is None:
        return Span(f"seed {run.run.seed}: {run.state}")
    return Span(f"seed {run.run.seed}: {run.fingerprint[:12]}", run.url, run_title(run))


def link_of(results: Results, runs: Sequence[RunResult], metric: str) -> str | None:
    """Return the page of one run, or the curves of several."""
    remote = [run.remote for run in runs if run.remote is not None]
    if not remote or results.server is None:
        return None
    if len(remote) == 1:
        return results.server.run_url(remote[0])
    return results.server.curves_url(remote, f"eval/{metric}")
