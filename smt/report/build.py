"""All tables and their index page, from the results of the runs."""

from collections.abc import Sequence
from pathlib import Path

from smt.config.project import Project
from smt.errors import UserError, suggest
from smt.report import drift, sizes
from smt.report.collect import Results
from smt.report.grid import Grid
from smt.report.index import Overview
from smt.report.render import write, write_text
from smt.report.tables import ResultTable
from smt.runs.paths import Layout

FIXED = {sizes.NAME: "Sizes", drift.NAME: "Drift"}
"""Tables of measured sizes: no run is behind them."""

INDEX = "index"
"""Stands for the page that leads to the tables, alone, where tables are named."""


def table_names(project: Project) -> tuple[str, ...]:
    """Return the names of all tables."""
    return (*project.tables, *FIXED)


def grid(results: Results, name: str) -> Grid:
    """Return one table."""
    if name == sizes.NAME:
        return sizes.sizes_grid(results.project, results.sizes)
    if name == drift.NAME:
        return drift.drift_grid(results.project, results.sizes[sizes.PAPER])
    return ResultTable(name, results).grid()


def require_names(names: Sequence[str], project: Project) -> None:
    """Raise a UserError with the nearest valid names where there is no such table."""
    for name in names:
        if name not in (*table_names(project), INDEX):
            raise UserError(
                f"no table {name!r} in params/tables.yaml; {suggest(name, table_names(project))}"
            )


def build(results: Results, layout: Layout, names: Sequence[str] = ()) -> list[Path]:
    """Write the named tables, or all, and the page that leads to them; return the files.

    Raises:
        UserError: a discrepancy that names an unknown size, or a folder that cannot be written.
    """
    paths = [
        path
        for name in names or table_names(results.project)
        if name != INDEX
        for path in write(grid(results, name), layout.tables)
    ]
    overview = Overview(results, FIXED.items())
    for suffix, text in (("md", overview.markdown()), ("html", overview.html())):
        paths.append(layout.tables / f"index.{suffix}")
        write_text(paths[-1], text)
    return paths
