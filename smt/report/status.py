"""What `smt status` tells of each run: its state, how far it is, how fast, and where."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from smt.cluster import states
from smt.cluster.cost import estimate
from smt.cluster.states import States
from smt.config.experiments import Run
from smt.config.project import Project
from smt.report.trajectory import OffTrack, off_track
from smt.runs import progress
from smt.runs.journal import Record
from smt.runs.paths import Layout
from smt.runs.progress import Length, Progress
from smt.runs.state import UNDER_WAY, Job, RunState, State
from smt.runs.workdir import Trail


@dataclass(frozen=True)
class RunStatus:
    """One run as it stands."""

    run_state: RunState
    progress: Progress
    """Of one that is not trained now: where another attempt would go on from."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Final numbers by the names of metrics.json; of a running one, its last evaluation."""
    place: str = ""
    """Where it is trained now."""
    warning: OffTrack | None = None
    """Where it is under way and not where it should be by now."""

    @property
    def run(self) -> Run:
        return self.run_state.run

    @property
    def state(self) -> State:
        return self.run_state.state

    @property
    def job(self) -> Job | None:
        """SLURM's job that trains it, will, or did last."""
        return self.run_state.job

    @property
    def attempts(self) -> int:
        """Starts of the training that came as far as its first step."""
        return self.run_state.trail.attempts if self.run_state.trail else 0


@dataclass(frozen=True)
class Status:
    """Runs of a scale at one moment."""

    project: Project
    states: States
    runs: tuple[RunStatus, ...]
    """Those that were asked for."""

    def count(self, state: State) -> int:
        """Return how many runs are in a state."""
        return sum(each.state is state for each in self.runs)

    @property
    def gpu_hours_left(self) -> float:
        """GPU-hours of what is to do, as `smt plan` reckons them."""
        return sum(_gpu_hours_left(self.project, each) for each in self.runs)


def collect(project: Project, layout: Layout, experiments: Iterable[str] = ()) -> Status:
    """Return how the runs of `experiments` stand now (default: all)."""
    every = states.read(project, layout)
    warnings = warn(project, layout, every)
    wanted = set(experiments) or set(project.order)
    chosen = [each for each in every.values() if each.run.experiment in wanted]
    runs = (_status(project, each, every.at, warnings.get(each.run)) for each in chosen)
    return Status(project, every, tuple(runs))


def warn(project: Project, layout: Layout, every: States) -> dict[Run, OffTrack]:
    """Return what is off track among the runs that are under way."""
    done = {run: each.fingerprint for run, each in every.items() if each.is_done}
    begun = {run: each.fingerprint for run, each in every.items() if each.state in UNDER_WAY}
    named = ({run: name for run, name in each.items() if name} for each in (done, begun))
    return off_track(project, layout, *named)


def _status(
    project: Project, run_state: RunState, now: float, warning: OffTrack | None
) -> RunStatus:
    length = _length(project, run_state.run)
    if run_state.is_done:
        metrics = run_state.final.metrics if run_state.final else {}
        return RunStatus(run_state, Progress(length, length.steps), metrics)
    trail = run_state.trail
    if run_state.state is not State.RUNNING or trail is None:
        return RunStatus(run_state, Progress(length, (trail and trail.saved) or 0), warning=warning)
    place = _place(trail, run_state.job)
    if _is_starting(trail, run_state.job):
        start = run_state.job.start if run_state.job else None
        silence = None if start is None else max(now - start, 0.0)
        return RunStatus(
            run_state, Progress(length, trail.saved or 0, None, silence), {}, place, warning
        )
    records = trail.records()
    ahead = progress.of_running(length, trail, records, now)
    return RunStatus(run_state, ahead, _last_evaluation(records), place, warning)


def _is_starting(trail: Trail, job: Job | None) -> bool:
    """Return whether what is on disk is of the attempt before that of the job."""
    return not trail.locked and job is not None and (job.start or 0.0) > trail.started


def _length(project: Project, run: Run) -> Length:
    recipe = project.recipe_of(run.experiment)
    steps = project.steps_per_epoch(run.experiment)
    return Length(steps, recipe.schedule.epochs, recipe.global_batch)


def _last_evaluation(records: Iterable[Record]) -> dict[str, float]:
    """Return the metrics of the last evaluation in a journal, without their prefix."""
    last: dict[str, float] = {}
    for line in records:
        evaluated = {
            name.removeprefix("eval/"): value
            for name, value in line.metrics.items()
            if name.startswith("eval/")
        }
        last = evaluated or last
    return last


def _place(trail: Trail, job: Job | None) -> str:
    """Return where a run is trained, in a phrase."""
    if job is not None:
        return f"job {job.number} on {job.nodes}"
    what = f"job {trail.job}" if trail.job else f"process {trail.process}"
    return f"{what} on {trail.host}"


def _gpu_hours_left(project: Project, status: RunStatus) -> float:
    if status.run_state.is_done:
        return 0.0
    cost = estimate(project, status.run.experiment)
    left = 1 - status.progress.step / status.progress.length.steps
    return cost.gpus * cost.wall_hours * left + cost.evaluation_hours
