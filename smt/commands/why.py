"""`smt why`: where a printed number comes from."""

import click

from smt.commands.common import load, scale_option


@click.command()
@click.argument("table")
@click.argument("row")
@scale_option
def command(table: str, row: str, scale: str) -> None:
    """Walk from ROW of TABLE to everything that its numbers come from.

    ROW is a label as the table prints it, or an experiment. For each of its runs: the journal's
    line with the numbers, weights, commit, machine, params, data, every attempt and SLURM job,
    MLflow's run, and the run that it started from, down to the first. Reads files alone.
    """
    from smt.verify.lineage import Lineage, find_row

    project, layout = load(scale)
    found = find_row(project, table, row)
    for line in Lineage(project, layout).row(table, found).lines():
        click.echo(line)
