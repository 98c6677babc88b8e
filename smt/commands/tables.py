"""`smt tables`: the paper's tables from MLflow, without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smt.commands.common import load, scale_option, warn_of

if TYPE_CHECKING:
    from smt.report.collect import Results
    from smt.runs.paths import Layout


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--frame",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a row each run and metric to FILE (.csv or .parquet) instead, for a notebook.",
)
@scale_option
def command(names: tuple[str, ...], frame: Path | None, scale: str) -> None:
    """Make the tables NAME of params/tables.yaml, sizes or drift; all by default.

    Each as Markdown, CSV, LaTeX and HTML. The page that leads to them is made with all of them, or
    by its own name, index.
    Runs that are not done show their state, by the word that `smt status` has for it, and why.
    """
    from smt.errors import UserError
    from smt.report import build
    from smt.report.collect import collect
    from smt.report.results import require_frame_suffix

    project, layout = load(scale)
    build.require_names(names, project)
    if frame is not None:
        require_frame_suffix(frame)
        for name in names:
            if name not in project.tables:
                valid = ", ".join(project.tables)
                raise UserError(f"--frame: no run is behind {name}; valid: {valid}")
    results = collect(project, layout)
    warn_of(results.damages)
    if frame is None:
        _write_tables(results, layout, names)
    else:
        _write_frame(results, names, frame)


def _write_frame(results: "Results", names: Sequence[str], path: Path) -> None:
    from smt.report.results import frame, write_frame

    data = frame(results, names)
    write_frame(data, path)
    click.echo(f"{path}: {len(data)} rows, a row each run and metric")


def _write_tables(results: "Results", layout: "Layout", names: Sequence[str]) -> None:
    from smt.report import build

    project = results.project
    paths = build.build(results, layout, names)
    selected = [name for name in names or build.table_names(project) if name != build.INDEX]
    width = max((len(name) for name in selected), default=0)
    for name in selected:
        click.echo(f"{name:<{width}}  {build.summary(results, name)}")
    if project.scale.notice:
        click.echo(project.scale.notice)
    click.echo(f"{len(paths)} files in {layout.tables}; begin with {paths[-1]}")
