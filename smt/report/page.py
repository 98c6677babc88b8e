"""The report: one page of what was reproduced, what was not, and the provenance of both."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from smt.config.experiments import Run
from smt.report import drift, figures, sizes, throughput
from smt.report.agreement import agreements, verdicts
from smt.report.build import CLAIMS, grid, links
from smt.report.collect import Results, RunResult, by_reason
from smt.report.grid import Grid
from smt.report.index import Overview, state_summary
from smt.report.inline import inline_svg
from smt.report.notes import INTERVAL, NOT_COMPARED, REPRODUCED, explain_verdict
from smt.report.pictures import pictures
from smt.report.plot_style import PALETTE
from smt.report.plots import plot
from smt.report.predictions import predictions
from smt.report.render import FORMATS, page
from smt.report.tables import ResultTable
from smt.runs import record, replays, shared_folder
from smt.runs.paths import Layout
from smt.runs.provenance import LOG
from smt.runs.record import DamagedRecord
from smt.runs.state import State, counts
from smt.tracking.client import runs_url, web_url

URGENT = (
    State.FAILED, State.STOPPED, State.RUNNING, State.QUEUED, State.OUTDATED, State.NOT_STARTED,
    State.DONE,
)  # fmt: skip
"""The states, the one to look at first in front; one that is done may not be in MLflow yet."""
VERDICTS = (
    "reproduced", "within noise", "above", "below", "no verdict", "not comparable", "not run",
)  # fmt: skip
"""In the order in which they are counted."""


@dataclass(frozen=True)
class Group:
    """Runs with the same state for the same reason."""

    state: State
    reason: str
    runs: tuple[str, ...]
    """Experiments, each with its seeds."""
    logs: tuple[tuple[str, str], ...]
    """Name of a failed run and address of its log, where that is at hand."""
    count: int


@dataclass(frozen=True)
class Section:
    """A table of the page, and the files that hold it alone."""

    grid: Grid
    files: tuple[tuple[str, str], ...]
    """Format and address of each that is there."""


class Report:
    """Content of the page, computed once."""

    def __init__(self, results: Results, layout: Layout) -> None:
        """Compute the content.

        Raises:
            UserError: MLflow does not answer, or a discrepancy names an unknown size.
        """
        self.results, self.layout = results, layout
        project = self.project = results.project
        runs = list(results.runs.values())
        self.title = "Scale-Aware Modulation Meet Transformer: a reproduction"
        self.scale, self.notice = project.scale.title, project.scale.notice
        states = counts(run.state for run in runs)
        self.states = [(state, count, describe_state(state)) for state, count in states.items()]
        self.total = len(runs)
        self.summary = f"{self.total} runs: {state_summary(runs)}."
        rows = agreements(results)
        counted = verdicts(rows)
        self.published = len(rows)
        self.verdicts = [(verdict, counted[verdict]) for verdict in VERDICTS if verdict in counted]
        self.unpublished = self._unpublished()
        self.agreement = plot(results, figures.AGREEMENT)
        self.tables = [
            self._section(ResultTable(name, results, with_sizes=False).grid())
            for name in project.tables
        ]
        self.explained = self._explained()
        self.peers = [
            (self._section(grid(results, name)), plot(results, figures.cost_name(name)))
            for name in project.peer_tables
        ]
        self.claims = self._section(grid(results, CLAIMS)) if project.claims else None
        self.sizes = self._section(grid(results, sizes.NAME))
        self.throughput = self._section(grid(results, throughput.NAME))
        self.drift = self._section(grid(results, drift.NAME))
        self.curves = [
            plot(results, name) for name in figures.titles(project) if figures.is_curves(name)
        ]
        self.predictions = predictions(results, layout)
        self.pictures = pictures(results, layout)
        self.accuracy = plot(results, figures.ACCURACY)
        self.warnings = [(str(run.run), run.warning.text) for run in runs if run.warning]
        self.groups = list(_groups(runs, layout))
        overview = Overview(results, links(results))
        self.columns, self.rows = overview.columns, overview.rows
        self.provenance = [
            *overview.provenance, *self._effort(), *self._data(), *self._trained_again()
        ]  # fmt: skip
        self.mlflow = self._mlflow()

    def states_count(self, state: str) -> int:
        """Return the number of runs in a state."""
        return sum(count for name, count, _ in self.states if name == state)

    @property
    def reproduced(self) -> int:
        """Count of published numbers that were reproduced, within the tolerance or the interval."""
        return sum(count for name, count in self.verdicts if name in ("reproduced", "within noise"))

    def html(self) -> str:
        return page("report.html.j2", report=self, palette=PALETTE, inline_svg=inline_svg)

    def _section(self, grid: Grid) -> Section:
        """Return a table with links to its files, which `smt tables` may have made or not."""
        names = {"md": "Markdown", "csv": "CSV", "tex": "LaTeX", "html": "HTML"}
        folder = self.layout.tables
        files = tuple(
            (names[suffix], f"{folder.name}/{grid.name}.{suffix}")
            for suffix in FORMATS
            if shared_folder.exists(folder / f"{grid.name}.{suffix}")
        )
        return Section(grid, files)

    def _explained(self) -> list[str]:
        """Return the notes that apply to the numbers and verdicts of all tables."""
        if self.notice is not None:
            return [REPRODUCED, NOT_COMPARED]
        tolerances = sorted({table.tolerance for table in self.project.tables.values()})
        tolerance = " or ".join(f"{value:g}" for value in tolerances)
        return [REPRODUCED, INTERVAL, explain_verdict(f"{tolerance}, as its table says")]

    def _unpublished(self) -> int:
        """Return the number of experiments of the tables without any published number."""
        project = self.project
        names = {name for table in project.tables.values() for name in table.experiments}
        return sum(
            not any(project.published_value(name, metric) for metric in project.metrics_of(name))
            for name in names
        )

    def _effort(self) -> list[tuple[str, str]]:
        """Return hours and attempts of the runs that are done."""
        done = [run for run in self.results.runs.values() if run.has_numbers and run.remote]
        wall = sum(run.metrics.get("wall_seconds", 0.0) for run in done) / 3600
        busy = (
            sum(run.metrics.get("wall_seconds", 0.0) * _processes(run) for run in done) / 3600
        )  # fmt: skip
        requeues = sum(int(_tag(run, "requeues") or 0) for run in done)
        return [
            ("Training time", f"{_hours(wall)} of {len(done)} runs, one after the other"),
            ("Time of processes", f"{_hours(busy)}; a process has one GPU where there are any"),
            ("Interruptions", f"{requeues} times gone on from a checkpoint"),
        ]

    def _data(self) -> list[tuple[str, str]]:
        """Return the digests of the data sets that runs were trained on."""
        digests: dict[str, set[str]] = {}
        for run in self.results.runs.values():
            for key, value in (run.remote.tags if run.remote else {}).items():
                if run.has_numbers and key.startswith("smt.data."):
                    digests.setdefault(key.removeprefix("smt.data."), set()).add(value[:12])
        return [(f"Data: {name}", ", ".join(sorted(digests[name]))) for name in sorted(digests)]

    def _trained_again(self) -> list[tuple[str, str]]:
        """Return what came of the audits of each run that is done."""
        done = [run.run for run in self.results.runs.values() if run.has_numbers]
        audits = [(str(run), text) for run in done if (text := _audit(self.layout, run))]
        if not audits:
            return [("Trained again", "no part of any run; smt audit RUN does it and compares")]
        return [(f"Trained again: {run}", text) for run, text in audits]

    def _mlflow(self) -> str | None:
        """Return the address of MLflow's pages, or None while nothing was sent."""
        server = self.results.server
        if server is None:
            return None
        return runs_url(web_url(server.uri), list(server.experiments().values()))


def describe_state(state: State) -> str:
    """Return the meaning of a state, for a legend."""
    return {
        State.NOT_STARTED: "no attempt has come to its first step",
        State.QUEUED: "its job waits in SLURM's queue",
        State.RUNNING: "it is being trained",
        State.STOPPED: "begun, and nobody trains it; goes on from its last checkpoint",
        State.DONE: "has final numbers of the present params, data and code version",
        State.FAILED: "its last attempt failed, or one of its records cannot be read",
        State.OUTDATED: "params, data or code version changed since; will be trained again",
    }[state]


def _groups(runs: Iterable[RunResult], layout: Layout) -> Iterator[Group]:
    """Yield the runs that are not done by state and reason, the urgent ones first."""
    groups = by_reason(runs)
    for state, reason in sorted(groups, key=lambda group: URGENT.index(group[0])):
        members = groups[state, reason]
        logs = tuple(_logs(members, layout)) if state is State.FAILED else ()
        yield Group(state, reason, _with_seeds(members), logs, len(members))


def _with_seeds(runs: Iterable[RunResult]) -> tuple[str, ...]:
    """Return the experiments of runs, each with its seeds."""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.run.experiment, []).append(str(run.run.seed))
    return tuple(
        f"{name}, seed{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
        for name, numbers in seeds.items()
    )


def _logs(runs: Iterable[RunResult], layout: Layout) -> Iterator[tuple[str, str]]:
    """Yield name and log of each run that has one on disk."""
    for run in runs:
        if run.fingerprint is not None:
            path = layout.work_dir(run.run, run.fingerprint) / LOG
            if shared_folder.exists(path):
                yield str(run.run), path.relative_to(layout.root).as_posix()


def _audit(layout: Layout, run: Run) -> str | None:
    """Return what came of the stretches of a run that were trained again; None if none were."""
    try:
        final = record.read_metrics(layout, run)
        known = replays.read(layout, run, final) if final is not None else None
    except DamagedRecord as damage:
        return str(damage)
    return known.summary if known is not None else None


def _tag(run: RunResult, name: str) -> str | None:
    return run.remote.tags.get(f"smt.{name}") if run.remote else None


def _processes(run: RunResult) -> int:
    """Return the world size of a run."""
    return int(run.remote.params.get("environment.world_size", "1")) if run.remote else 1


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.2f} h"
