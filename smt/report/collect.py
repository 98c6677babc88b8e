"""How every run of a scale stands, and its final numbers, from MLflow and checked.

The numbers come from MLflow. Where a run's `metrics.json` is at hand it must say the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal

from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.metrics import HEADLINES, METRICS
from smt.config.project import Project
from smt.datasets import manifest
from smt.errors import DataError, UserError
from smt.report.spread import Spread, by_recipe
from smt.report.trajectory import OffTrack, off_track
from smt.runs import record
from smt.runs.journal import Evaluation, best_evaluation
from smt.runs.paths import Layout
from smt.runs.record import PROVENANCE, DamagedRecord, RunMetrics
from smt.tracking import client as mlflow
from smt.tracking.client import RemoteRun, Server

State = Literal["done", "pending", "running", "failed", "stale"]
CROSS_CHECKED_METRICS = ("eval", "evaluation")
"""Sections of MLflow's metrics that must agree with the final numbers: the journal's last
evaluation, and the exported weights evaluated again."""

STATES: tuple[State, ...] = ("done", "pending", "running", "failed", "stale")


@dataclass(frozen=True)
class RunResult:
    """One run of the project as it stands."""

    run: Run
    state: State
    reason: str
    """Why it is not done, in one line; empty if it is."""
    fingerprint: str | None
    """None while a data set that it needs has no manifest."""
    remote: RemoteRun | None
    """MLflow's run of this fingerprint."""
    url: str | None
    """Where a browser shows it."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Final numbers, by the names of metrics.json; empty unless done."""
    best: Evaluation | None = None
    """Its best evaluation by the headline metric, if it is done and its journal is here."""
    warning: OffTrack | None = None
    """Where it is running and not where it should be by now."""


@dataclass(frozen=True)
class Results:
    """Every run of a scale."""

    project: Project
    server: Server | None
    """None where nothing was ever sent."""
    runs: dict[Run, RunResult]
    damages: tuple[DamagedRecord, ...]
    """Records that cannot be read; their runs count as failed."""

    def of(self, experiment: str) -> list[RunResult]:
        """Return the results of an experiment's runs, by seed as params give them."""
        seeds = self.project.seeds(experiment)
        return [self.runs[Run(experiment=experiment, seed=seed)] for seed in seeds]

    def of_table(self, table: str) -> list[RunResult]:
        """Return the results of the runs of a table."""
        names = self.project.tables[table].experiments
        return [run for experiment in names for run in self.of(experiment)]

    def spread(self, experiment: str, metric: str) -> Spread | None:
        """Return how far seeds differ by chance in the recipe of an experiment, if that is known.

        None where no experiment of the recipe has several seeds that are done.
        """
        return self._spreads.get((self.project.experiments[experiment].recipe, metric))

    @cached_property
    def _spreads(self) -> dict[tuple[str, str], Spread]:
        finals = {
            name: [run.metrics for run in self.of(name) if run.state == "done"]
            for name in self.project.experiments
        }
        return by_recipe(self.project, finals)


def collect(project: Project, layout: Layout) -> Results:
    """Return how every run stands.

    Raises:
        UserError: MLflow does not answer, or it and a `metrics.json` say different numbers.
    """
    uri = layout.tracking_uri()
    server = None if mlflow.is_missing(uri) else Server.of(layout)
    remote = (
        {run.tags.get("smt.fingerprint"): run for run in reversed(server.runs())} if server else {}
    )
    return assemble(project, layout, server, remote)


def assemble(
    project: Project,
    layout: Layout,
    server: Server | None,
    remote: Mapping[str | None, RemoteRun],
    *,
    checked: bool = True,
) -> Results:
    """Return how every run stands, given MLflow's run of each fingerprint.

    Raises:
        UserError: `checked`, and one of them and a `metrics.json` say different numbers.
    """
    collector = _Collector(project, layout, server, remote, checked)
    for run in project.runs:
        collector.add(run)
    runs = _warned(project, layout, collector.runs)
    return Results(project, server, runs, tuple(collector.damages))


def _warned(
    project: Project, layout: Layout, runs: Mapping[Run, RunResult]
) -> dict[Run, RunResult]:
    """Return the results with a warning, and with it in the reason, where one is off track."""
    known = {
        state: {
            run: result.fingerprint
            for run, result in runs.items()
            if result.state == state and result.fingerprint is not None
        }
        for state in ("done", "running")
    }
    off = off_track(project, layout, known["done"], known["running"])
    return {
        run: replace(result, warning=off[run], reason=f"{result.reason}; {off[run].text}")
        if run in off
        else result
        for run, result in runs.items()
    }


class _Collector:
    def __init__(
        self,
        project: Project,
        layout: Layout,
        server: Server | None,
        remote: Mapping[str | None, RemoteRun],
        checked: bool,
    ) -> None:
        self.project, self.layout, self.server, self.remote = project, layout, server, remote
        self.checked = checked
        self.runs: dict[Run, RunResult] = {}
        self.damages: list[DamagedRecord] = []
        self._digests: dict[tuple[str, ...], dict[str, str]] = {}

    def add(self, run: Run) -> None:
        """Find out how `run` stands; its parent has been added before."""
        try:
            current = fingerprint.fingerprint(self.project, run, self._digests_of(run))
        except DataError as error:
            self.runs[run] = RunResult(run, "pending", str(error), None, None, None)
            return
        remote = self.remote.get(current)
        url = self.server.run_url(remote) if self.server and remote else None
        try:
            final = record.read_metrics(self.layout, run)
            state, reason = self._state(run, current, final, remote)
        except DamagedRecord as damage:
            self.damages.append(damage)
            self.runs[run] = RunResult(run, "failed", str(damage), current, remote, url)
            return
        metrics: dict[str, float] = {}
        best: Evaluation | None = None
        if state == "done" and remote is not None:
            metrics = _section(remote, "final")
            best = self._best(run, current)
            if final is not None and self.checked:
                self._check(run, final, remote, url)
        self.runs[run] = RunResult(run, state, reason, current, remote, url, metrics, best)

    def _digests_of(self, run: Run) -> dict[str, str]:
        needed = fingerprint.inputs(self.project, run)
        if needed not in self._digests:
            self._digests[needed] = manifest.digests(self.project, self.layout, run)
        return self._digests[needed]

    def _state(
        self, run: Run, current: str, final: RunMetrics | None, remote: RemoteRun | None
    ) -> tuple[State, str]:
        work_dir = self.layout.work_dir(run, current)
        begun = (work_dir / PROVENANCE).exists()
        if final is not None and final.fingerprint == current:
            return self._state_of_finished(remote)
        failure = record.read_failure(work_dir)
        if failure is not None:
            return "failed", failure.message
        if remote is not None and remote.status == "FINISHED" and not begun:
            return "done", ""  # trained elsewhere; MLflow has its numbers
        if begun:
            return "running", self._progress(run, remote)
        if final is not None:
            was = final.fingerprint[:12]
            return (
                "stale",
                f"params or data changed since it was trained (as {was}); train it again",
            )
        return "pending", self._waits_for(run)

    def _state_of_finished(self, remote: RemoteRun | None) -> tuple[State, str]:
        if remote is not None and remote.status == "FINISHED":
            return "done", ""
        command = f"smt sync --scale {self.layout.scale}"
        return "pending", f"trained, but not in MLflow yet; run: {command}"

    def _progress(self, run: Run, remote: RemoteRun | None) -> str:
        recipe = self.project.recipe_of(run.experiment)
        done = int(remote.metrics.get("epoch", 0)) if remote else 0
        return f"begun, {done} of {recipe.schedule.epochs} epochs sent to MLflow"

    def _waits_for(self, run: Run) -> str:
        parent = self.project.parent(run)
        if parent is None or self.runs[parent].state == "done":
            return "not begun"
        state = self.runs[parent].state
        return f"waits for {parent}, which {'failed' if state == 'failed' else f'is {state}'}"

    def _best(self, run: Run, current: str) -> Evaluation | None:
        headline = HEADLINES[self.project.experiments[run.experiment].task]
        try:
            return best_evaluation(self.layout.work_dir(run, current), headline)
        except (ValueError, KeyError, TypeError):
            return None  # a damaged journal is for smt verify to name

    def _check(self, run: Run, final: RunMetrics, remote: RemoteRun, url: str | None) -> None:
        """Compare MLflow's numbers with those of `metrics.json`, and with one another."""
        path, theirs = self.layout.metrics(run), f"MLflow run {remote.run_id} ({url})"
        remedy = (
            f"run `smt sync --scale {self.layout.scale}`; if that does not settle it one of them "
            "was changed by hand: delete that MLflow run and sync again, or train the run again"
        )
        for name, value in final.metrics.items():
            sent = remote.metrics.get(f"final/{name}")
            if not _equal(value, sent):
                raise UserError(f"{path} says {name} = {value}, {theirs} says {sent}; {remedy}")
        weights, sent_weights = final.weights_sha256, remote.tags.get("smt.weights_sha256")
        if weights != sent_weights:
            raise UserError(
                f"{path} is of the weights {weights}, {theirs} of {sent_weights}; {remedy}"
            )
        for section, name in product(CROSS_CHECKED_METRICS, METRICS):
            seen, own = remote.metrics.get(f"{section}/{name}"), final.metrics.get(name)
            if seen is not None and own is not None and abs(seen - own) > METRICS[name].tolerance:
                raise UserError(
                    f"{path} says {name} = {own}, but {section}/{name} of {theirs} is {seen}; "
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
    """Return the runs that are not done, by state and reason."""
    groups: dict[tuple[State, str], list[RunResult]] = {}
    for result in results:
        if result.state != "done":
            groups.setdefault((result.state, result.reason), []).append(result)
    return groups


def counts(results: Iterable[RunResult]) -> dict[State, int]:
    """Return how many runs are in each state that any is in."""
    states = [result.state for result in results]
    return {state: states.count(state) for state in STATES if state in states}
