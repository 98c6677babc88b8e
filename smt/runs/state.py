"""The state of a run: one of seven words, decided here alone, from its files and SLURM's queue."""

import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from smt.config.experiments import Run
from smt.runs import record, workdir
from smt.runs.paths import Layout
from smt.runs.record import DamagedRecord, RunMetrics
from smt.runs.workdir import WorkDirSnapshot

FRESH = 60.0
"""Seconds for which a heartbeat is fresh, of a training on a host whose locks are not visible."""


class State(StrEnum):
    """The state of a run, in the order in which states are counted."""

    DONE = "done"
    """It has final numbers, of the present params, data and code version."""
    RUNNING = "running"
    """A process or a job trains it."""
    QUEUED = "queued"
    """A job of SLURM that will train it waits in the queue."""
    STOPPED = "stopped"
    """Begun, and nobody trains it; it goes on from its last checkpoint."""
    FAILED = "failed"
    """Its last attempt failed, or one of its records cannot be read."""
    OUTDATED = "outdated"
    """It has final numbers of other params, data or code version, and will be trained again."""
    NOT_STARTED = "not started"
    """No attempt has come as far as its first step."""


def counts(states: Iterable[State]) -> dict[State, int]:
    """Return the count of each state that occurs, in the order of `State`."""
    counter = Counter(states)
    return {state: counter[state] for state in State if state in counter}


UNDER_WAY = frozenset((State.RUNNING, State.QUEUED, State.STOPPED))
"""States in which a run that was begun goes on, so that it is worth a warning."""


class Job(Protocol):
    """A job as SLURM reports it."""

    @property
    def number(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def nodes(self) -> str: ...
    @property
    def requeues(self) -> int: ...
    @property
    def start(self) -> float | None: ...
    @property
    def is_on_nodes(self) -> bool: ...
    @property
    def is_waiting(self) -> bool: ...
    @property
    def is_broken(self) -> bool:
        """Whether it ended as no job should."""

    @property
    def ending(self) -> str:
        """How it ended, in a phrase."""


@dataclass(frozen=True)
class Jobs:
    """The jobs of one run in SLURM's queue."""

    own: Job | None = None
    """The job that trains it, will, or did last."""
    other: Job | None = None
    """A job that trains, or will train, the run with its former fingerprint."""
    on_nodes: frozenset[str] | None = None
    """Numbers of all jobs that run; None where SLURM is not reachable."""


@dataclass(frozen=True)
class RunState:
    """The state of one run, and the facts that it was decided from."""

    run: Run
    state: State
    reason: str = ""
    """Why it is neither done nor running; of a done run, why it is not confirmed."""
    fingerprint: str | None = None
    """None while data that it needs have no manifest."""
    final: RunMetrics | None = None
    """Its final numbers, if it is done and they are on this machine."""
    snapshot: WorkDirSnapshot | None = None
    """The files of its last attempt; None where they cannot be read, or have no folder yet."""
    job: Job | None = None
    damage: DamagedRecord | None = None
    data_problem: str = ""
    """Why its fingerprint cannot be told, with the remedy; empty where it can."""

    @property
    def is_done(self) -> bool:
        return self.state is State.DONE

    @property
    def is_confirmed(self) -> bool:
        """Whether it is done here, with the present params and data for certain."""
        return self.is_done and self.final is not None and self.fingerprint is not None


@dataclass(frozen=True)
class Facts:
    """The inputs of the decision that are not among the files of the run."""

    fingerprint: str | None
    """Of the present params, data and code version; None while data have no manifest."""
    lacking: tuple[str, ...]
    """The data without a manifest."""
    data_problem: str
    """What is wrong with these data, with its remedy; empty where nothing is."""
    parent: RunState | None
    """The run that it starts from."""
    jobs: Jobs
    is_elsewhere: bool
    """Whether MLflow has its final numbers."""
    now: float
    """Unix seconds."""


def decide(layout: Layout, run: Run, facts: Facts) -> RunState:
    """Return the state of a run. Nothing is written."""
    try:
        final = record.read_metrics(layout, run)
        if facts.fingerprint is None:
            return _without_data(run, final, facts)
        work_dir = layout.work_dir(run, facts.fingerprint)
        if final is not None and final.fingerprint == facts.fingerprint:
            return _done(run, final, work_dir)
        snapshot = workdir.read(work_dir)
    except DamagedRecord as damage:
        return RunState(run, State.FAILED, str(damage), facts.fingerprint, damage=damage)
    folders = layout.run_dir(run).glob("work-*")
    state, reason = _decide(snapshot, facts, final, folders)
    return RunState(run, state, reason, facts.fingerprint, None, snapshot, facts.jobs.own)


def _without_data(run: Run, final: RunMetrics | None, facts: Facts) -> RunState:
    names = ", ".join(facts.lacking)
    if final is None:
        reason = f"waits for data: {names}"
        return RunState(run, State.NOT_STARTED, reason, data_problem=facts.data_problem)
    # Numbers of a colleague's results folder count although his data are not here.
    reason = f"no telling of which data, without manifests: {names}"
    return RunState(run, State.DONE, reason, final=final, data_problem=facts.data_problem)


def _done(run: Run, final: RunMetrics, work_dir: Path) -> RunState:
    try:
        snapshot = workdir.read(work_dir)
    except DamagedRecord as damage:
        return RunState(run, State.DONE, str(damage), final.fingerprint, final, damage=damage)
    return RunState(run, State.DONE, "", final.fingerprint, final, snapshot)


def _decide(
    snapshot: WorkDirSnapshot, facts: Facts, final: RunMetrics | None, folders: Iterable[Path]
) -> tuple[State, str]:
    """Return state and reason of a run without final numbers of its present fingerprint."""
    job = facts.jobs.own
    if _is_running(snapshot, facts):
        return State.RUNNING, ""
    # Before the failure of the last attempt: SLURM has another one in its queue.
    if job is not None and job.is_waiting:
        return State.QUEUED, job.reason or job.state
    if snapshot.failure:
        return State.FAILED, snapshot.failure
    ending = job.ending if job is not None else ""
    if snapshot.has_begun:
        return State.STOPPED, ending
    if job is not None and job.is_broken:
        return State.FAILED, f"{ending}, before its first step"
    if facts.is_elsewhere:
        return State.DONE, ""
    if final is not None:
        was = final.fingerprint[:12]
        what = "params, data or code version changed"
        return State.OUTDATED, f"{what} since it was trained (as {was}); train it again"
    return State.NOT_STARTED, _before_start(facts) or ending or _half_done(folders)


def _is_running(snapshot: WorkDirSnapshot, facts: Facts) -> bool:
    job = facts.jobs.own
    if snapshot.locked:
        return True
    if job is not None and job.is_on_nodes:
        # A job that is ending after its training failed is not one that trains.
        return not (snapshot.failure and snapshot.failed_at > (job.start or 0))
    return _is_running_elsewhere(snapshot, facts)


def _is_running_elsewhere(snapshot: WorkDirSnapshot, facts: Facts) -> bool:
    """Return whether a training on a host whose locks are not visible has a fresh heartbeat."""
    if snapshot.locked is not None and snapshot.host in ("", socket.gethostname()):
        return False
    on_nodes = facts.jobs.on_nodes
    if snapshot.job and on_nodes is not None and snapshot.job not in on_nodes:
        return False
    return snapshot.beat is not None and facts.now - snapshot.beat.time < FRESH


def _before_start(facts: Facts) -> str:
    """Return what a run without an attempt waits for, or an empty text."""
    if facts.parent is not None and not facts.parent.is_done:
        state = facts.parent.state
        is_state = "has failed" if state is State.FAILED else f"is {state}"
        return f"waits for {facts.parent.run}, which {is_state}"
    other = facts.jobs.other
    if other is not None:
        return f"job {other.number} ({other.state.lower()}) has other params or data"
    return ""


def _half_done(folders: Iterable[Path]) -> str:
    """Return the progress of a run with other params or data, or an empty text."""
    saved = {path.name: workdir.newest_checkpoint(path) for path in sorted(folders)}
    half = ", ".join(f"{name} at step {step}" for name, step in saved.items() if step)
    return f"half done with other params or data: {half}" if half else ""
