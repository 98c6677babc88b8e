"""The final numbers of every run of a scale, from MLflow and checked, and the state of each run.

The numbers come from MLflow. Where a run's `metrics.json` is here it must have the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

from smt.cluster import states
from smt.cluster.states import States
from smt.config.experiments import Run
from smt.config.metrics import HEADLINES, METRICS
from smt.config.project import Project
from smt.errors import UserError
from smt.report.released import ReleasedResults, read_released
from smt.report.sizes import Sizes, read_sizes
from smt.report.spread import Spread, by_recipe
from smt.report.status import warn
from smt.report.throughput import Throughput
from smt.report.trajectory import OffTrack
from smt.runs.journal import Evaluation, best_evaluation
from smt.runs.paths import Layout
from smt.runs.record import DamagedRecord, RunMetrics
from smt.runs.state import UNDER_WAY, RunState, State
from smt.tracking import client as mlflow
from smt.tracking.client import RemoteRun, TrackingClient

CROSS_CHECKED_METRICS = ("eval", "evaluation")
"""Sections of MLflow's metrics that must agree with the final numbers: the journal's last
evaluation, and the exported weights evaluated again."""

NOT_SENT = "not in MLflow"
"""What stands in place of the number of a run that is done and was not sent yet."""


@dataclass(frozen=True)
class RunResult:
    """State and final numbers of one run."""

    run: Run
    state: State
    reason: str
    """Why it has no numbers here, in one line; empty if it has."""
    fingerprint: str | None
    """None while a data set that it needs has no manifest."""
    remote: RemoteRun | None
    """MLflow's run of this fingerprint."""
    url: str | None
    """Where a browser shows it."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Final numbers, by the names of metrics.json; empty unless done and in MLflow."""
    best: Evaluation | None = None
    """Its best evaluation by the headline metric, if it is done and its journal is here."""
    deviations: tuple[str, ...] = ()
    """How it was another training than the paper's, if it is done and its numbers are here."""
    warning: OffTrack | None = None
    """Where it is under way and not where it should be by now."""

    @property
    def has_numbers(self) -> bool:
        """Whether it is done and MLflow has its numbers, which tables and figures show."""
        return bool(self.metrics)

    @property
    def lack(self) -> str:
        """What stands in place of a number that it does not have."""
        return NOT_SENT if self.state is State.DONE else self.state


@dataclass(frozen=True)
class Results:
    """Every run of a scale."""

    project: Project
    server: TrackingClient | None
    """None where nothing was ever sent."""
    runs: dict[Run, RunResult]
    damages: tuple[DamagedRecord, ...]
    """Records that cannot be read; their runs, and sizes, count as failed, speeds as not there."""
    sizes: Mapping[str, Sizes]
    """Measured sizes by scale: of the paper's and of this one."""
    throughput: Throughput = field(default_factory=Throughput)
    """Measured speeds of inference, by machine and setting."""
    released: Mapping[str, ReleasedResults] = field(default_factory=dict)
    """Released weights that were evaluated here, by scale, likewise."""

    def of(self, experiment: str) -> list[RunResult]:
        """Return the results of an experiment's runs, by seed as params give them."""
        seeds = self.project.seeds(experiment)
        return [self.runs[Run(experiment=experiment, seed=seed)] for seed in seeds]

    def of_table(self, table: str) -> list[RunResult]:
        """Return the results of the runs of a table."""
        names = self.project.tables[table].experiments
        return [run for experiment in names for run in self.of(experiment)]

    def spread(self, experiment: str, metric: str) -> Spread | None:
        """Return the spread over seeds in the recipe of an experiment.

        None where no experiment of the recipe has several seeds that are done.
        """
        return self._spreads.get((self.project.experiments[experiment].recipe, metric))

    @cached_property
    def _spreads(self) -> dict[tuple[str, str], Spread]:
        finals = {
            name: [run.metrics for run in self.of(name) if run.has_numbers]
            for name in self.project.experiments
        }
        return by_recipe(self.project, finals)


def collect(project: Project, layout: Layout) -> Results:
    """Return state and final numbers of every run.

    Raises:
        UserError: MLflow does not answer, or it and a `metrics.json` have different numbers.
    """
    uri = layout.tracking_uri()
    server = None if mlflow.is_missing(uri) else TrackingClient.from_layout(layout)
    remote = (
        {run.tags.get("smt.fingerprint"): run for run in reversed(server.runs())} if server else {}
    )
    return assemble(project, layout, server, remote)


def assemble(
    project: Project,
    layout: Layout,
    server: TrackingClient | None,
    remote: Mapping[str | None, RemoteRun],
    *,
    checked: bool = True,
) -> Results:
    """Return state and final numbers of every run, given MLflow's run of each fingerprint.

    Raises:
        UserError: `checked`, and one of them and a `metrics.json` have different numbers.
    """
    sent = {key for key, run in remote.items() if key and run.status == "FINISHED"}
    run_states = states.read(project, layout, elsewhere=sent)
    collector = _Collector(project, layout, server, remote, run_states, checked)
    sizes = read_sizes(project, layout)
    released, throughput = read_released(project, layout), Throughput.read(layout)
    damages = (
        *run_states.damages,
        *(scale.damage for scale in sizes.values() if scale.damage is not None),
        *(damage for scale in released.values() for damage in scale.damages.values()),
        *throughput.damages,
    )
    runs = {run: collector.result(run) for run in run_states}
    return Results(project, server, runs, damages, sizes, throughput, released)


class _Collector:
    def __init__(
        self,
        project: Project,
        layout: Layout,
        server: TrackingClient | None,
        remote: Mapping[str | None, RemoteRun],
        run_states: States,
        checked: bool,
    ) -> None:
        self.project, self.layout, self.server, self.remote = project, layout, server, remote
        self.states, self.checked = run_states, checked
        self.warnings = warn(project, layout, run_states)

    def result(self, run: Run) -> RunResult:
        """Return the state of a run, and its numbers if it is done and MLflow has them."""
        run_state = self.states[run]
        remote = self.remote.get(run_state.fingerprint) if run_state.fingerprint else None
        url = self.server.run_url(remote) if self.server and remote else None
        metrics: dict[str, float] = {}
        best: Evaluation | None = None
        if run_state.is_done and run_state.fingerprint and remote and remote.status == "FINISHED":
            metrics = _section(remote, "final")
            best = self._best(run, run_state.fingerprint)
            if run_state.final is not None and self.checked:
                self._check(run, run_state.final, remote, url)
        final = run_state.final
        deviations = tuple(final.deviations) if metrics and final is not None else ()
        warning = self.warnings.get(run)
        reason = self._reason(run_state, remote, bool(metrics))
        if warning is not None:
            reason = f"{reason}; {warning.text}"
        return RunResult(
            run, run_state.state, reason, run_state.fingerprint, remote, url, metrics, best,
            deviations, warning,
        )  # fmt: skip

    def _reason(self, run_state: RunState, remote: RemoteRun | None, has_numbers: bool) -> str:
        if run_state.data_problem:
            return f"{run_state.reason}; {run_state.data_problem}"
        if run_state.is_done:
            command = f"smt sync --scale {self.layout.scale}"
            return "" if has_numbers else f"trained, but not in MLflow yet; run: {command}"
        snapshot = run_state.snapshot
        if run_state.state in UNDER_WAY and snapshot is not None and snapshot.has_begun:
            epochs = self.project.recipe_of(run_state.run.experiment).schedule.epochs
            sent = int(remote.metrics.get("epoch", 0)) if remote else 0
            how_far = f"begun, {sent} of {epochs} epochs sent to MLflow"
            return f"{run_state.reason}; {how_far}" if run_state.reason else how_far
        return run_state.reason or "no attempt yet"

    def _best(self, run: Run, current: str) -> Evaluation | None:
        headline = HEADLINES[self.project.experiments[run.experiment].task]
        try:
            return best_evaluation(self.layout.work_dir(run, current), headline)
        except (ValueError, KeyError, TypeError):
            return None  # a damaged journal is for smt verify to name

    def _check(self, run: Run, final: RunMetrics, remote: RemoteRun, url: str | None) -> None:
        """Compare MLflow's numbers with those of `metrics.json`, and with one another."""
        path, source = self.layout.metrics(run), f"MLflow run {remote.run_id} ({url})"
        remedy = (
            f"run `smt sync --scale {self.layout.scale}`; if that does not settle it one of them "
            "was changed by hand: delete that MLflow run and sync again, or train the run again"
        )
        for name, value in final.metrics.items():
            sent = remote.metrics.get(f"final/{name}")
            if not _equal(value, sent):
                raise UserError(f"{path} says {name} = {value}, {source} says {sent}; {remedy}")
        weights, sent_weights = final.weights_sha256, remote.tags.get("smt.weights_sha256")
        if weights != sent_weights:
            raise UserError(
                f"{path} is of the weights {weights}, {source} of {sent_weights}; {remedy}"
            )
        for section, name in product(CROSS_CHECKED_METRICS, METRICS):
            sent, own = remote.metrics.get(f"{section}/{name}"), final.metrics.get(name)
            if sent is not None and own is not None and abs(sent - own) > METRICS[name].tolerance:
                raise UserError(
                    f"{path} says {name} = {own}, but {section}/{name} of {source} is {sent}; "
                    f"{remedy}"
                )


def _section(remote: RemoteRun, name: str) -> dict[str, float]:
    prefix = f"{name}/"
    return {
        key.removeprefix(prefix): value
        for key, value in sorted(remote.metrics.items())
        if key.startswith(prefix)
    }


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))  # NaN is equal to NaN here


def by_reason(results: Iterable[RunResult]) -> dict[tuple[State, str], list[RunResult]]:
    """Return the runs without numbers, by state and reason."""
    groups: dict[tuple[State, str], list[RunResult]] = {}
    for result in results:
        if not result.has_numbers:
            groups.setdefault((result.state, result.reason), []).append(result)
    return groups
