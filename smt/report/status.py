"""Status of runs for `smt status`: state, progress, speed and place."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from smt.cluster import states
from smt.cluster.cost import estimate
from smt.cluster.states import States
from smt.config.experiments import Run
from smt.config.project import Project
from smt.report.trajectory import OffTrack, off_track
from smt.runs import progress
from smt.runs.journal import TimedLine
from smt.runs.paths import Layout
from smt.runs.progress import Length, Progress
from smt.runs.state import UNDER_WAY, Job, RunState, State
from smt.runs.workdir import WorkDirSnapshot


@dataclass(frozen=True)
class RunStatus:
    """State and progress of one run."""

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
        return self.run_state.snapshot.attempts if self.run_state.snapshot else 0


@dataclass(frozen=True)
class Status:
    """Status of the runs of a scale at one moment."""

    project: Project
    states: States
    runs: tuple[RunStatus, ...]
    """Those of the selected experiments."""

    def count(self, state: State) -> int:
        """Return the number of runs in a state."""
        return sum(run.state is state for run in self.runs)

    @property
    def gpu_hours_left(self) -> float:
        """GPU-hours of the runs that are not done, as `smt plan` estimates them."""
        return sum(_gpu_hours_left(self.project, run) for run in self.runs)


def collect(project: Project, layout: Layout, experiments: Iterable[str] = ()) -> Status:
    """Return the status of the runs of `experiments` now (default: all)."""
    run_states = states.read(project, layout)
    warnings = warn(project, layout, run_states)
    names = set(experiments) or set(project.order)
    runs = (
        _status(project, run_state, run_states.at, warnings.get(run))
        for run, run_state in run_states.items()
        if run.experiment in names
    )
    return Status(project, run_states, tuple(runs))


def warn(project: Project, layout: Layout, run_states: States) -> dict[Run, OffTrack]:
    """Return the warning of each run under way that is off track."""
    fingerprints = [(state, state.fingerprint) for state in run_states.values()]
    done = {state.run: name for state, name in fingerprints if name and state.is_done}
    under_way = {
        state.run: name for state, name in fingerprints if name and state.state in UNDER_WAY
    }
    return off_track(project, layout, done, under_way)


def _status(
    project: Project, run_state: RunState, now: float, warning: OffTrack | None
) -> RunStatus:
    length = _length(project, run_state.run)
    if run_state.is_done:
        metrics = run_state.final.metrics if run_state.final else {}
        return RunStatus(run_state, Progress(length, length.steps), metrics)
    snapshot = run_state.snapshot
    if run_state.state is not State.RUNNING or snapshot is None:
        step = (snapshot and snapshot.checkpoint_step) or 0
        return RunStatus(run_state, Progress(length, step), warning=warning)
    place = _place(snapshot, run_state.job)
    if _is_starting(snapshot, run_state.job):
        start = run_state.job.start if run_state.job else None
        silence = None if start is None else max(now - start, 0.0)
        waiting = Progress(length, snapshot.checkpoint_step or 0, None, silence)
        return RunStatus(run_state, waiting, {}, place, warning)
    lines = snapshot.journal_lines()
    current = progress.of_running(length, snapshot, lines, now)
    return RunStatus(run_state, current, _last_evaluation(lines), place, warning)


def _is_starting(snapshot: WorkDirSnapshot, job: Job | None) -> bool:
    """Return whether the files on disk are of the attempt before that of the job."""
    return not snapshot.locked and job is not None and (job.start or 0.0) > snapshot.started


def _length(project: Project, run: Run) -> Length:
    recipe = project.recipe_of(run.experiment)
    steps = project.steps_per_epoch(run.experiment)
    return Length(steps, recipe.schedule.epochs, recipe.global_batch)


def _last_evaluation(lines: Iterable[TimedLine]) -> dict[str, float]:
    """Return the metrics of the last evaluation in a journal, without their prefix."""
    last: dict[str, float] = {}
    for line in lines:
        last = line.evaluation or last
    return last


def _place(snapshot: WorkDirSnapshot, job: Job | None) -> str:
    """Return where a run is trained, in a phrase."""
    if job is not None:
        return f"job {job.number} on {job.nodes}"
    what = f"job {snapshot.job}" if snapshot.job else f"process {snapshot.process}"
    return f"{what} on {snapshot.host}"


def _gpu_hours_left(project: Project, status: RunStatus) -> float:
    if status.run_state.is_done:
        return 0.0
    cost = estimate(project, status.run.experiment)
    left = 1 - status.progress.step / status.progress.length.steps
    return cost.gpus * cost.wall_hours * left + cost.evaluation_hours
