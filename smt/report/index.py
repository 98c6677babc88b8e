"""The index page: links to every table and figure, and the state of each run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from smt.config.metrics import METRICS, headline
from smt.report import figures
from smt.report.collect import Results, RunResult
from smt.report.format import css_class, joined
from smt.report.grid import Cell, Column
from smt.report.render import markdown_table, markdown_text, page
from smt.runs.state import counts
from smt.tracking.client import is_http, redact_password

COLUMNS = (
    Column("Run"),
    Column("State"),
    Column("Result (%)", numeric=True),
    Column("Minutes", numeric=True),
    Column("Attempts", numeric=True),
    Column("Commit", provenance=True),
    Column("Fingerprint", provenance=True),
    Column("Why not done"),
)


@dataclass(frozen=True)
class Link:
    """A table of this folder."""

    name: str
    title: str
    summary: str


@dataclass(frozen=True)
class Figure:
    """A figure beside this folder."""

    href: str
    title: str


class Overview:
    """Content of the page, computed once for Markdown and HTML."""

    def __init__(self, results: Results, tables: Sequence[Link]) -> None:
        """`tables` are all that the page leads to."""
        self.results = results
        self.project = results.project
        scale = self.project.scale
        self.title = f"Scale-Aware Modulation Meet Transformer: results at {scale.title}"
        self.notice = scale.notice
        self.summary = f"{len(results.runs)} runs: {state_summary(results.runs.values())}."
        self.tables = tables
        self.figures = [
            Figure(f"../figures/{name}.svg", title)
            for name, title in figures.titles(self.project).items()
        ]
        self.figures_command = f"smt figures --scale {self.project.scale_name}"
        self.provenance = self._provenance()
        self.columns = COLUMNS
        self.rows = [self._row(run) for run in results.runs.values()]

    def html(self) -> str:
        return page("index.html.j2", overview=self)

    def markdown(self) -> str:
        """Return the same as Markdown."""
        parts = [f"# {markdown_text(self.title)}"]
        if self.notice:
            parts.append(f"**{markdown_text(self.notice)}**")
        parts += [
            markdown_text(self.summary),
            "## Tables",
            "\n".join(
                f"- [{markdown_text(table.title)}]({table.name}.md): {table.summary}"
                for table in self.tables
            ),
            "## Figures",
            "\n\n".join(f"![{markdown_text(plot.title)}]({plot.href})" for plot in self.figures),
            "## Where it comes from",
            "\n".join(f"- {name}: {markdown_text(value)}" for name, value in self.provenance),
            "## Runs",
            markdown_table(self.columns, self.rows),
        ]
        return "\n\n".join(parts) + "\n"

    def _provenance(self) -> list[tuple[str, str]]:
        server = self.results.server
        done = [run for run in self.results.runs.values() if run.has_numbers]
        packages = ("torch", "torchvision", "timm", "numpy", "pillow")
        return [
            ("MLflow", _where(server.uri) if server else "nothing sent yet: run smt sync"),
            ("MLflow experiments", f"{server.family}/TABLE" if server else "none"),
            ("Code", _distinct(done, "git.commit") + _dirty(done)),
            *((name, _distinct(done, f"package.{name}")) for name in packages),
            ("Machines", _distinct(done, "hardware.host")),
            ("Processors", _distinct(done, "hardware.processor")),
            ("GPUs", _distinct(done, "hardware.gpus")),
        ]

    def _row(self, run: RunResult) -> tuple[Cell, ...]:
        tags = run.remote.tags if run.remote else {}
        name, seconds = headline(run.metrics), run.metrics.get("wall_seconds")
        result = "" if name is None else METRICS[name].format(run.metrics[name])
        fingerprint = run.fingerprint or ""
        return (
            Cell.of(str(run.run)),
            Cell.of(run.state, kind=css_class(run.state)),
            Cell.of(result),
            Cell.of("" if seconds is None else f"{seconds / 60:.1f}"),
            Cell.of(tags.get("smt.attempts", "")),
            Cell.of(tags.get("smt.git.commit", "")[:10]),
            Cell.of(fingerprint[:12], run.url, title=f"fingerprint {fingerprint}"),
            Cell.of(run.reason),
        )


def state_summary(runs: Iterable[RunResult]) -> str:
    """Return the number of runs in each state, as in `3 done, 2 not started`."""
    states = counts(run.state for run in runs)
    return ", ".join(f"{count} {state}" for state, count in states.items()) or "no runs"


def _where(uri: str) -> str:
    """Return the tracking URI; of an SQLite file only its name, wherever the folder lies."""
    if is_http(uri) or not uri.startswith("sqlite:"):
        return redact_password(uri)
    return f"{uri.rsplit('/', 1)[-1]} (SQLite); browse it with smt ui"


def _distinct(runs: list[RunResult], tag: str) -> str:
    values = {run.remote.tags.get(f"smt.{tag}", "") for run in runs if run.remote}
    return joined(sorted(values - {"", "[]"})) or "none"


def _dirty(runs: list[RunResult]) -> str:
    dirty = sum(bool(run.remote and run.remote.tags.get("smt.git.dirty") == "true") for run in runs)
    return f" ({dirty} runs with changes that were not committed)" if dirty else ""
