"""All tables and their index page, from the results of the runs."""

from collections.abc import Sequence
from pathlib import Path

from smt.config.project import Project
from smt.errors import UserError, suggest
from smt.report import claims, drift, sizes, throughput, throughput_grid
from smt.report.collect import Results
from smt.report.grid import Grid
from smt.report.index import Link, Overview, state_summary
from smt.report.peers import PeerGrid
from smt.report.render import write, write_text
from smt.report.tables import ResultTable
from smt.runs.paths import Layout

FIXED = {
    sizes.NAME: "Sizes", throughput.NAME: throughput_grid.TITLE, drift.NAME: "Drift"
}  # fmt: skip
"""Tables of measured sizes: no run is behind them."""

CLAIMS = claims.NAME
"""The table of claims, which needs every run that a claim names."""

INDEX = "index"
"""Stands for the page that leads to the tables, alone, where tables are named."""


def table_names(project: Project) -> tuple[str, ...]:
    """Return the names of all tables."""
    claimed = (CLAIMS,) if project.claims else ()
    return (*project.tables, *project.peer_tables, *claimed, *FIXED)


def experiments_of(project: Project, name: str) -> tuple[str, ...]:
    """Return the experiments whose results stand in a table; none for one of `FIXED`."""
    if name in FIXED:
        return ()
    if name == CLAIMS:
        return claims.experiments(project)
    if name in project.peer_tables:
        return project.peer_tables[name].trained
    return project.tables[name].experiments


def grid(results: Results, name: str) -> Grid:
    """Return one table."""
    if name == sizes.NAME:
        return sizes.sizes_grid(results.project, results.sizes)
    if name == throughput.NAME:
        return throughput_grid.ThroughputGrid(results).grid()
    if name == drift.NAME:
        return drift.drift_grid(
            results.project, results.sizes[sizes.PAPER], results.released[sizes.PAPER]
        )
    if name == CLAIMS:
        return claims.claims_grid(results)
    if name in results.project.peer_tables:
        return PeerGrid(name, results).grid()
    return ResultTable(name, results).grid()


def links(results: Results) -> list[Link]:
    """Return every table, as the index page names it."""
    project = results.project
    titles = {
        **{name: table.title for name, table in project.tables.items()},
        **{name: table.title for name, table in project.peer_tables.items()},
        CLAIMS: claims.TITLE,
        **FIXED,
    }
    return [Link(name, titles[name], summary(results, name)) for name in table_names(project)]


def summary(results: Results, name: str) -> str:
    """Return the states of the runs that a table shows, in a phrase."""
    if name in FIXED:
        return "measured sizes"
    runs = (
        run
        for experiment in experiments_of(results.project, name)
        for run in results.of(experiment)
    )
    states = state_summary(runs)
    return f"{len(results.project.claims)} claims on runs: {states}" if name == CLAIMS else states


def require_names(names: Sequence[str], project: Project) -> None:
    """Raise a UserError with the nearest valid names where there is no such table."""
    for name in names:
        if name not in (*table_names(project), INDEX):
            raise UserError(
                f"no table {name!r} in params/tables.yaml; {suggest(name, table_names(project))}"
            )


def build(results: Results, layout: Layout, names: Sequence[str] = ()) -> list[Path]:
    """Write the named tables, or all and the page that leads to them; return the files.

    Raises:
        UserError: a discrepancy that names an unknown size, or a folder that cannot be written.
    """
    names = names or (*table_names(results.project), INDEX)
    paths = [
        path
        for name in names
        if name != INDEX
        for path in write(grid(results, name), layout.tables)
    ]
    if INDEX in names:
        overview = Overview(results, links(results))
        for suffix, text in (("md", overview.markdown()), ("html", overview.html())):
            paths.append(layout.tables / f"index.{suffix}")
            write_text(paths[-1], text)
    return paths
