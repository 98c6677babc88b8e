"""`smt tables`: the paper's tables from what MLflow has, without torch."""

import click

from smt.commands.common import load, scale_option, warn_of


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@scale_option
def command(names: tuple[str, ...], scale: str) -> None:
    """Make the tables NAME of params/tables.yaml, sizes or drift; all by default.

    Each as Markdown, CSV, LaTeX and HTML, and a page that leads to them (index: this alone).
    Runs that are not done show their state, by the word that `smt status` has for it, and why.
    """
    from smt.report import build
    from smt.report.collect import collect
    from smt.report.index import stated

    project, layout = load(scale)
    build.require_names(names, project)
    results = collect(project, layout)
    warn_of(results.damages)
    paths = build.build(results, layout, names)
    chosen = [name for name in names or build.table_names(project) if name != build.INDEX]
    width = max((len(name) for name in chosen), default=0)
    for name in chosen:
        if name in build.FIXED:
            click.echo(f"{name:<{width}}  sizes and facts, no runs")
            continue
        experiments = dict.fromkeys(row.experiment for row in project.tables[name].rows)
        runs = [run for experiment in experiments for run in results.of(experiment)]
        click.echo(f"{name:<{width}}  {stated(runs)}")
    if project.scale.notice:
        click.echo(project.scale.notice)
    click.echo(f"{len(paths)} files in {layout.tables}; begin with {paths[-1]}")
