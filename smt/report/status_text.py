"""The state of runs in words and columns, and as JSON."""

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
    """Return a line a run, more where its details are long; then what to do, and a summary.

    States are coloured; `click.echo` takes that off where there is no terminal.
    """
    names = max((len(str(each.run)) for each in status.runs), default=0)
    states = max(map(len, State))
    indent = names + states + 4
    lines = []
    for each in status.runs:
        name, state = str(each.run).ljust(names), each.state.ljust(states)
        first, *more = _wrapped(_details(each, status.states.at), max(width - indent, _NARROWEST))
        lines.append(f"{name}  {click.style(state, **_COLOURS[each.state])}  {first}".rstrip())
        lines += [" " * indent + line for line in more]
    # Lines with commands are not broken: they are there to be copied.
    last = [*status.states.problems, *_hints(status), textwrap.fill(_summary(status), width)]
    return "\n".join([*lines, "", *last]) + "\n"


def _wrapped(parts: Iterable[str], width: int) -> list[str]:
    """Return parts as lines, with no break inside a short one, such as a number and its unit."""
    whole = (part.replace(" ", "\xa0") if len(part) <= _NARROWEST else part for part in parts)
    lines = textwrap.wrap("; ".join(whole), width, break_on_hyphens=False)
    return [line.replace("\xa0", " ") for line in lines] or [""]


def _details(each: RunStatus, now: float) -> Iterator[str]:
    if each.warning is not None:
        yield each.warning.text
    if each.state is State.RUNNING:
        yield from _running(each)
        return
    if each.state is State.DONE:
        yield _numbers(each.metrics)
    if each.state is State.QUEUED:
        yield from _queued(each, now)
    elif each.run_state.reason:
        yield each.run_state.reason
    if each.progress.step and each.state is not State.DONE:
        yield _position(each.progress)
    elif each.state is State.STOPPED:
        yield "before its first checkpoint"
    if each.state in (State.QUEUED, State.STOPPED, State.FAILED) and each.attempts > 1:
        yield f"{each.attempts} attempts"


def _running(each: RunStatus) -> Iterator[str]:
    ahead = each.progress
    yield f"{_position(ahead)}, epoch {ahead.epoch} of {ahead.length.epochs}"
    if ahead.is_quiet:
        yield f"no step {'for' if ahead.rate else 'yet after'} {span(ahead.silence or 0)}"
    elif ahead.images_per_second is None:
        yield "starting"
    else:
        yield f"{_figure(ahead.images_per_second)} images/s"
    if ahead.waits_for_data:
        yield f"waits for data {100 * (ahead.data_wait or 0):.0f} % of its time"
    if ahead.seconds_left is not None:
        yield f"{span(ahead.seconds_left)} left"
    if each.metrics:
        yield f"{_headline(each.metrics)} so far"
    yield each.place
    yield from _tries(each)


def _queued(each: RunStatus, now: float) -> Iterator[str]:
    job = each.job
    assert job is not None
    yield f"job {job.number}: {each.run_state.reason}"
    if job.start is not None:
        yield f"may start {_clock(job.start, now)}"
    if job.requeues:
        yield _times(job.requeues, "requeue")


def _tries(each: RunStatus) -> Iterator[str]:
    if each.attempts > 1:
        yield f"attempt {each.attempts}"
    if each.job is not None and each.job.requeues:
        yield _times(each.job.requeues, "requeue")


def _times(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def _position(ahead: Progress) -> str:
    return f"step {ahead.step:,} of {ahead.length.steps:,}"


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
    """Yield what to do about states, and what to keep in mind."""
    scale = status.project.scale_name
    for state, hint in _HINTS.items():
        if status.count(state):
            yield f"{state}: {hint}: smt train EXPERIMENT --seed N --scale {scale}"
    off = sum(each.warning is not None for each in status.runs)
    if off:
        yield f"off track: {_times(off, 'run')}, a warning only: smt ui shows the curves"
    waiting = sum(each.progress.waits_for_data for each in status.runs)
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
    left = counts(each.state for each in status.runs)
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
    """Return every run with all that is known of it, counts, and GPU-hours left."""
    document = {
        "scale": status.project.scale_name,
        "notice": status.project.scale.notice,
        "at": status.states.at,
        "without_slurm": status.states.without_slurm or None,
        "problems": status.states.problems,
        "runs": [_record(each) for each in status.runs],
        "summary": {state: status.count(state) for state in State},
        "gpu_hours_left": round(status.gpu_hours_left, 3),
    }
    return json.dumps(document, indent=2) + "\n"


def _record(each: RunStatus) -> dict[str, Any]:
    ahead, job = each.progress, each.job
    return {
        "run": str(each.run),
        "experiment": each.run.experiment,
        "seed": each.run.seed,
        "state": each.state,
        "reason": each.run_state.reason,
        "fingerprint": each.run_state.fingerprint,
        "metrics": each.metrics,
        "step": ahead.step,
        "steps": ahead.length.steps,
        "epoch": ahead.epoch,
        "epochs": ahead.length.epochs,
        "steps_per_second": ahead.rate,
        "images_per_second": ahead.images_per_second,
        "data_wait": ahead.data_wait,
        "seconds_left": ahead.seconds_left,
        "seconds_since_step": ahead.silence,
        "attempts": each.attempts,
        "place": each.place,
        "off_track": each.warning and asdict(each.warning),
        "job": job and {
            "number": job.number,
            "state": job.state,
            "reason": job.reason,
            "nodes": job.nodes,
            "start": job.start,
            "requeues": job.requeues,
        },
    }  # fmt: skip
