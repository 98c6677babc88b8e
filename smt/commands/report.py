"""`smt report`: everything on one page, without torch."""

import click

from smt.commands.common import load, scale_option, warn_of


@click.command()
@scale_option
def command(scale: str) -> None:
    """Write one page with tables, curves, failures and where all of it comes from.

    It stands alone: no file beside it is needed, and nothing is loaded from the net. Runs that are
    not done show as what they are, and why. The same results give the same page.
    """
    from smt.report.collect import collect
    from smt.report.page import Report
    from smt.report.render import write_text

    project, layout = load(scale)
    results = collect(project, layout)
    report = Report(results, layout)
    predicted = report.predictions.damages if report.predictions else ()
    warn_of((*results.damages, *predicted, *report.pictures.damages))
    write_text(layout.report, report.html())
    click.echo(f"{report.summary} {layout.report}")
