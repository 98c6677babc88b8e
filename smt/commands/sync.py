"""`smt sync`: journals to MLflow, only what is new."""

import click

from smt.commands.common import load, scale_option


@click.command()
@click.option(
    "--experiment", "experiments", multiple=True, metavar="NAME", help="Only this one; repeatable."
)
@scale_option
def command(experiments: tuple[str, ...], scale: str) -> None:
    """Send what is new in the journals of all runs to MLflow.

    Goes to MLFLOW_TRACKING_URI, else to mlflow.db in the results folder. May be typed at any time
    and any number of times, while runs train or after: nothing is sent twice.
    """
    from smt.tracking.mlflow_sync import sync
    from smt.tracking.server import public

    project, layout = load(scale)
    outcome = sync(project, layout, experiments)
    for name in outcome.remade:
        click.echo(f"{name}: MLflow held another training of it; sent anew from the journal")
    click.echo(
        f"{outcome.runs} runs in MLflow at {public(layout.tracking_uri())}: {outcome.changed} had "
        f"something new ({outcome.points} values); receipt: {layout.sync_receipt}"
    )
