"""The status of runs as text in columns, and as JSON."""

import json
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import click

from smt.config.metrics import headline
from smt.report.status import RunStatus, Status
from smt.runs.progress import MOST_DATA_WAIT, Progress
from smt.runs.state import State, counts

WIDTH = 100
"""Columns that the text keeps to where there is no terminal."""

_NARROWEST = 30
"""Columns that details get even where names are long."""

_COLOURS: Mapping[State, dict[str, Any]] = {
    State.DONE: {"fg": "green"},
    State.RUNNING: {"fg": "cyan"},
    State.QUEUED: {"fg": "yellow"},
    State.STOPPED: {"fg": "magenta"},
    State.FAILED: {"fg": "red", "bold": True},
    State.OUTDATED: {"fg": "yellow", "dim": True},
    State.NOT_STARTED: {"dim": True},
}

_HINTS: Mapping[State, str] = {
    State.STOPPED: "goes on with Snakemake, or with",
    State.FAILED: "mend the cause; goes on with Snakemake, or with",
}
"""What stands before the command that goes on with a run in this state."""


def text(status: Status, width: int = WIDTH) -> str:
    """Return a line a run, more where its details are long; then hints and a summary.

    States are coloured; `click.echo` takes that off where there is no terminal.
    """
    names = max((len(str(run.run)) for run in status.runs), default=0)
    states = max(map(len, State))
    indent = names + states + 4
    lines = []
    for run in status.runs:
        name, state = str(run.run).ljust(names), run.state.ljust(states)
        first, *more = _wrapped(_details(run, status.states.at), max(width - indent, _NARROWEST))
        lines.append(f"{name}  {click.style(state, **_COLOURS[run.state])}  {first}".rstrip())
        lines += [" " * indent + line for line in more]
    # Lines with commands are not broken: they are there to be copied.
    last = [*status.states.problems, *_hints(status), textwrap.fill(_summary(status), width)]
    return "\n".join([*lines, "", *last]) + "\n"


def _wrapped(parts: Iterable[str], width: int) -> list[str]:
    """Return parts as lines, with no break inside a short one, such as a number and its unit."""
    whole = (part.replace(" ", "\xa0") if len(part) <= _NARROWEST else part for part in parts)
    lines = textwrap.wrap("; ".join(whole), width, break_on_hyphens=False)
    return [line.replace("\xa0", " ") for line in lines] or [""]


def _details(run: RunStatus, now: float) -> Iterator[str]:
    if run.warning is not None:
        yield run.warning.text
    if run.state is State.RUNNING:
        yield from _running(run)
        return
    if run.state is State.DONE:
        yield _numbers(run.metrics)
    if run.state is State.QUEUED:
        yield from _queued(run, now)
    elif run.run_state.reason:
        yield run.run_state.reason
    if run.progress.step and run.state is not State.DONE:
        yield _position(run.progress)
    elif run.state is State.STOPPED:
        yield "before its first checkpoint"
    if run.state in (State.QUEUED, State.STOPPED, State.FAILED) and run.attempts > 1:
        yield f"{run.attempts} attempts"


def _running(run: RunStatus) -> Iterator[str]:
    progress = run.progress
    yield f"{_position(progress)}, epoch {progress.epoch} of {progress.length.epochs}"
    if progress.is_quiet:
        yield f"no step {'for' if progress.rate else 'yet after'} {span(progress.silence or 0)}"
    elif progress.images_per_second is None:
        yield "starting"
    else:
        yield f"{_figure(progress.images_per_second)} images/s"
    if progress.waits_for_data:
        yield f"waits for data {100 * (progress.data_wait or 0):.0f} % of its time"
    if progress.seconds_left is not None:
        yield f"{span(progress.seconds_left)} left"
    if run.metrics:
        yield f"{_headline(run.metrics)} so far"
    yield run.place
    yield from _tries(run)


def _queued(run: RunStatus, now: float) -> Iterator[str]:
    job = run.job
    assert job is not None
    yield f"job {job.number}: {run.run_state.reason}"
    if job.start is not None:
        yield f"may start {_clock(job.start, now)}"
    if job.requeues:
        yield _times(job.requeues, "requeue")


def _tries(run: RunStatus) -> Iterator[str]:
    if run.attempts > 1:
        yield f"attempt {run.attempts}"
    if run.job is not None and run.job.requeues:
        yield _times(run.job.requeues, "requeue")


def _times(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def _position(progress: Progress) -> str:
    return f"step {progress.step:,} of {progress.length.steps:,}"


def _headline(metrics: Mapping[str, float]) -> str:
    """Return the metric by which runs are compared, which is the first that is written down."""
    name = headline(metrics)
    if name is not None:
        return f"{name} {metrics[name]:.2f}"
    first = next(iter(metrics))
    return f"{first} {metrics[first]:.4g}"


def _numbers(metrics: Mapping[str, float]) -> str:
    return _headline(metrics) if metrics else "no numbers"


def _hints(status: Status) -> Iterator[str]:
    """Yield the command for states that need one, warnings, and the GPU-hours left."""
    scale = status.project.scale_name
    for state, hint in _HINTS.items():
        if status.count(state):
            yield f"{state}: {hint}: smt train EXPERIMENT --seed N --scale {scale}"
    off = sum(run.warning is not None for run in status.runs)
    if off:
        yield f"off track: {_times(off, 'run')}, a warning only: smt ui shows the curves"
    waiting = sum(run.progress.waits_for_data for run in status.runs)
    if waiting and status.project.scale.workers != 0:  # without one, reading is part of a step
        yield (
            f"waits for data: {_times(waiting, 'run')}, over {100 * MOST_DATA_WAIT:.0f} % of the "
            "time: raise `workers` in params/scales.yaml (jobs then ask for more CPUs), or pack "
            "the data: smt data pack"
        )
    if status.project.scale.notice:
        yield status.project.scale.notice
    if status.count(State.DONE) < len(status.runs):
        hours, kind = _figure(status.gpu_hours_left), status.project.cluster.kind.title
        yield f"to go: about {hours} GPU-hours on {kind}"


def _summary(status: Status) -> str:
    left = counts(run.state for run in status.runs)
    total, done = len(status.runs), left.pop(State.DONE, 0)
    parts = ", ".join(f"{count} {state}" for state, count in left.items())
    to_go = f"{total - done} to go ({parts})" if parts else "0 to go"
    return f"{_times(total, 'run')}: {done} done, {to_go}"


def _figure(number: float) -> str:
    """Return a number in about three digits, never in powers of ten."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def span(seconds: float) -> str:
    """Return a time span in its largest unit: 45 s, 12 min, 3.5 h, 2.1 d."""
    for unit, size, until in (("s", 1, 90), ("min", 60, 5400)):
        if seconds < until:
            return f"{seconds / size:.0f} {unit}"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} d"


def _clock(at: float, now: float) -> str:
    """Return a moment in local time, with its date unless it is today."""
    moment = time.localtime(at)
    same_day = moment[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M" if same_day else "%Y-%m-%d %H:%M", moment)


# --- for machines --------------------------------------------------------------------------------


def as_json(status: Status) -> str:
    """Return all fields of every run, counts by state, and GPU-hours left."""
    document = {
        "scale": status.project.scale_name,
        "notice": status.project.scale.notice,
        "at": status.states.at,
        "without_slurm": status.states.without_slurm or None,
        "problems": status.states.problems,
        "runs": [_record(run) for run in status.runs],
        "summary": {state: status.count(state) for state in State},
        "gpu_hours_left": round(status.gpu_hours_left, 3),
    }
    return json.dumps(document, indent=2) + "\n"


def _record(run: RunStatus) -> dict[str, Any]:
    progress, job = run.progress, run.job
    return {
        "run": str(run.run),
        "experiment": run.run.experiment,
        "seed": run.run.seed,
        "state": run.state,
        "reason": run.run_state.reason,
        "fingerprint": run.run_state.fingerprint,
        "metrics": run.metrics,
        "step": progress.step,
        "steps": progress.length.steps,
        "epoch": progress.epoch,
        "epochs": progress.length.epochs,
        "steps_per_second": progress.rate,
        "images_per_second": progress.images_per_second,
        "data_wait": progress.data_wait,
        "seconds_left": progress.seconds_left,
        "seconds_since_step": progress.silence,
        "attempts": run.attempts,
        "place": run.place,
        "off_track": run.warning and asdict(run.warning),
        "job": job and {
            "number": job.number,
            "state": job.state,
            "reason": job.reason,
            "nodes": job.nodes,
            "start": job.start,
            "requeues": job.requeues,
        },
    }  # fmt: skip
