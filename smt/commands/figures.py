"""`smt figures`: learning curves, and accuracy against MACs."""

import click

from smt.commands.common import load, scale_option, warn_of


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@scale_option
def command(names: tuple[str, ...], scale: str) -> None:
    """Plot the figures NAME as SVG and PNG; all by default, from what MLflow has."""
    from smt.errors import UserError, suggest
    from smt.report.collect import collect
    from smt.report.figures import titles
    from smt.report.plots import save_all

    project, layout = load(scale)
    for name in names:
        if name not in titles(project):
            raise UserError(f"no figure {name!r}; {suggest(name, titles(project))}")
    results = collect(project, layout)
    warn_of(results.damages)
    paths = save_all(results, layout, names)
    click.echo(f"{len(paths)} files in {layout.figures}")
