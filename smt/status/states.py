"""The state of every run of a scale, and why it is not done."""

import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from smt.cluster import queue
from smt.cluster.cost import estimate
from smt.cluster.queue import Job, Queue
from smt.cluster.slurm import SlurmUnavailable
from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.project import Project
from smt.datasets import manifest
from smt.errors import DataError
from smt.report.trajectory import OffTrack, off_track
from smt.runs import progress, record, workdir
from smt.runs.paths import Layout
from smt.runs.progress import Length, Progress
from smt.runs.record import DamagedRecord, RunMetrics
from smt.runs.workdir import Trail

State = Literal["done", "running", "pending", "stopped", "failed", "waiting", "not started"]
"""pending: in SLURM's queue; stopped: begun, and nobody trains it; waiting: for data or for the
run that it starts from."""

STATES: tuple[State, ...] = get_args(State)

UNDER_WAY: tuple[State, ...] = ("running", "pending", "stopped")
"""States in which a run that was begun goes on, so that it is worth a warning."""

FRESH = 60.0
"""Seconds for which a sign of life counts, of a training on a host whose locks are not seen."""


@dataclass(frozen=True)
class RunStatus:
    """One run as it stands."""

    run: Run
    state: State
    progress: Progress
    """Of one that is not trained now: where another attempt would go on from."""
    reason: str = ""
    """Why it is neither done nor running; of a done one, what is uncertain about it."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Final numbers by the names of metrics.json; of a running one, its last evaluation."""
    fingerprint: str | None = None
    """None while data that it needs have no manifest."""
    attempts: int = 0
    """Starts of the training that came as far as its first step."""
    job: Job | None = None
    """SLURM's job that trains it, will, or did last."""
    place: str = ""
    """Where it is trained now."""
    warning: OffTrack | None = None
    """Where it is under way and not where it should be by now."""


@dataclass(frozen=True)
class Status:
    """Runs of a scale at one moment."""

    project: Project
    at: float
    """Unix seconds."""
    runs: tuple[RunStatus, ...]
    without_slurm: str
    """Why SLURM is not reachable, in a phrase; empty if it is."""
    problems: tuple[str, ...]
    """What is wrong with data, each with its remedy."""

    def count(self, state: State) -> int:
        """Return how many runs are in a state."""
        return sum(each.state == state for each in self.runs)

    @property
    def gpu_hours_left(self) -> float:
        """GPU-hours of what is to do, as `smt plan` reckons them."""
        return sum(_gpu_hours_left(self.project, each) for each in self.runs)


def collect(project: Project, layout: Layout, experiments: Iterable[str] = ()) -> Status:
    """Return how the runs of `experiments` stand now (default: all)."""
    without_slurm, jobs = "", None
    try:
        jobs = queue.jobs()
    except SlurmUnavailable as problem:
        without_slurm = str(problem)
    collector = _Collector(project, layout, Queue(layout.scale, jobs), time.time())
    every = _warned(project, layout, [collector.add(run) for run in project.runs])
    wanted = set(experiments) or set(project.order)
    return Status(
        project=project,
        at=collector.now,
        runs=tuple(each for each in every if each.run.experiment in wanted),
        without_slurm=without_slurm,
        problems=tuple(collector.problems),
    )


def _warned(project: Project, layout: Layout, every: Iterable[RunStatus]) -> list[RunStatus]:
    """Return the runs, with a warning on those that are under way and off track."""
    known = {each.run: each for each in every}
    done, under_way = (
        {
            run: each.fingerprint
            for run, each in known.items()
            if each.state in states and each.fingerprint is not None
        }
        for states in (("done",), UNDER_WAY)
    )
    off = off_track(project, layout, done, under_way)
    return [replace(each, warning=off.get(each.run)) for each in known.values()]


@dataclass(frozen=True)
class _Facts:
    """What is known of a run that is not done."""

    run: Run
    fingerprint: str
    length: Length
    trail: Trail
    job: Job | None
    final: RunMetrics | None
    """Its numbers from before params or data changed."""


class _Collector:
    """Finds out how runs stand, parents before children."""

    def __init__(self, project: Project, layout: Layout, jobs: Queue, now: float) -> None:
        self.project, self.layout, self.queue, self.now = project, layout, jobs, now
        self.problems: dict[str, None] = {}
        self._found: dict[Run, RunStatus] = {}
        self._digests: dict[tuple[str, ...], dict[str, str] | DataError] = {}

    def add(self, run: Run) -> RunStatus:
        """Return how a run stands; its parent has been added before."""
        try:
            found = self._status(run)
        except DamagedRecord as damage:
            found = RunStatus(run, "failed", Progress(_length(self.project, run), 0), str(damage))
        self._found[run] = found
        return found

    def _status(self, run: Run) -> RunStatus:
        digests = self._digests_of(run)
        if isinstance(digests, DataError):
            return self._without_data(run, digests)
        return self._with_data(run, fingerprint.fingerprint(self.project, run, digests))

    def _digests_of(self, run: Run) -> dict[str, str] | DataError:
        needed = fingerprint.inputs(self.project, run)
        if needed not in self._digests:
            try:
                self._digests[needed] = manifest.digests(self.project, self.layout, run)
            except DataError as error:
                self._digests[needed] = error
        return self._digests[needed]

    def _without_data(self, run: Run, error: DataError) -> RunStatus:
        """Return the status of a run whose fingerprint cannot be told."""
        self.problems.setdefault(str(error))
        keys = fingerprint.inputs(self.project, run)
        lacking = [key for key in keys if not manifest.manifest_path(self.layout, key).exists()]
        names = ", ".join(lacking or keys)
        length, final = _length(self.project, run), record.read_metrics(self.layout, run)
        if final is None:
            return RunStatus(run, "waiting", Progress(length, 0), f"for data: {names}")
        reason = f"no telling of which data, without manifests: {names}"
        return RunStatus(run, "done", Progress(length, length.steps), reason, final.metrics)

    def _with_data(self, run: Run, current: str) -> RunStatus:
        left = workdir.read(self.layout.work_dir(run, current))
        length, final = _length(self.project, run), record.read_metrics(self.layout, run)
        if final is not None and final.fingerprint == current:
            return RunStatus(
                run, "done", Progress(length, length.steps), metrics=final.metrics,
                fingerprint=current, attempts=left.attempts,
            )  # fmt: skip
        facts = _Facts(run, current, length, left, self.queue.find(run, current), final)
        return self._running(facts) if self._is_running(facts) else self._at_rest(facts)

    # --- running ---------------------------------------------------------------------------------

    def _is_running(self, facts: _Facts) -> bool:
        if facts.trail.locked:
            return True
        if facts.job is not None and facts.job.is_on_nodes:
            failed_in_it = facts.trail.failure and facts.trail.failed_at > (facts.job.start or 0)
            return not failed_in_it
        return self._is_running_elsewhere(facts.trail)

    def _is_running_elsewhere(self, left: Trail) -> bool:
        """Return whether a training shows life on a host whose locks may not be seen here."""
        if left.locked is not None and left.host in ("", socket.gethostname()):
            return False
        if left.job and self.queue.is_reachable and not self.queue.is_on_nodes(left.job):
            return False
        return left.beat is not None and self.now - left.beat.time < FRESH

    def _running(self, facts: _Facts) -> RunStatus:
        left, job = facts.trail, facts.job
        if not left.locked and job is not None and (job.start or 0.0) > left.started:
            # What is on disk is of the attempt before: this one is still on its way to the data.
            silence = None if job.start is None else max(self.now - job.start, 0.0)
            ahead, metrics = Progress(facts.length, left.saved or 0, None, silence), {}
        else:
            records = left.records()
            ahead = progress.of_running(facts.length, left, records, self.now)
            metrics = _last_evaluation(records)
        return RunStatus(
            facts.run, "running", ahead, metrics=metrics, fingerprint=facts.fingerprint,
            attempts=left.attempts, job=job, place=_place(left, job),
        )  # fmt: skip

    # --- not running -----------------------------------------------------------------------------

    def _at_rest(self, facts: _Facts) -> RunStatus:
        state, reason = self._why(facts)
        return RunStatus(
            facts.run, state, Progress(facts.length, facts.trail.saved or 0), reason,
            fingerprint=facts.fingerprint, attempts=facts.trail.attempts, job=facts.job,
        )  # fmt: skip

    def _why(self, facts: _Facts) -> tuple[State, str]:
        job, left = facts.job, facts.trail
        if job is not None and job.is_waiting:
            return "pending", job.reason or job.state
        if left.failure:
            return "failed", left.failure
        ended = job.ending if job is not None else ""
        if left.begun:
            return "stopped", ended
        if job is not None and job.is_broken:
            return "failed", f"{ended}, before its first step"
        parent = self.project.parent(facts.run)
        if parent is not None and self._found[parent].state != "done":
            state = self._found[parent].state
            return "waiting", f"for {parent}, which {'has ' if state == 'failed' else 'is '}{state}"
        return "not started", ended or self._before(facts)

    def _before(self, facts: _Facts) -> str:
        """Return what there is of a run from before its params or data changed."""
        other = self.queue.find_other(facts.run, facts.fingerprint)
        if other is not None:
            return f"job {other.number} ({other.state.lower()}) has other params or data"
        if facts.final is not None:
            was = facts.final.fingerprint[:12]
            return f"params or data changed since it was trained (as {was})"
        folders = self.layout.run_dir(facts.run).glob("work-*")
        saved = {path.name: workdir.newest_checkpoint(path) for path in sorted(folders)}
        half = ", ".join(f"{name} at step {step}" for name, step in saved.items() if step)
        return f"half done with other params or data: {half}" if half else ""


def _length(project: Project, run: Run) -> Length:
    recipe = project.recipe_of(run.experiment)
    steps = project.steps_per_epoch(run.experiment)
    return Length(steps, recipe.schedule.epochs, recipe.global_batch)


def _last_evaluation(records: Iterable[Any]) -> dict[str, float]:
    """Return the metrics of the last evaluation in a journal, without their prefix."""
    last: dict[str, float] = {}
    for line in records:
        found = {
            name.removeprefix("eval/"): value
            for name, value in line.metrics.items()
            if name.startswith("eval/")
        }
        last = found or last
    return last


def _place(left: Trail, job: Job | None) -> str:
    """Return where a run is trained, in a phrase."""
    if job is not None:
        return f"job {job.number} on {job.nodes}"
    what = f"job {left.job}" if left.job else f"process {left.process}"
    return f"{what} on {left.host}"


def _gpu_hours_left(project: Project, status: RunStatus) -> float:
    if status.state == "done":
        return 0.0
    cost = estimate(project, status.run.experiment)
    left = 1 - status.progress.step / status.progress.length.steps
    return cost.gpus * cost.wall_hours * left + cost.evaluation_hours
