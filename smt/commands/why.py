"""`smt why`: the lineage of a printed number."""

import click

from smt.commands.common import load, scale_option
from smt.errors import UserError, first_line


@click.command()
@click.argument("table")
@click.argument("row")
@scale_option
def command(table: str, row: str, scale: str) -> None:
    """Trace ROW of TABLE to everything that its numbers were made from.

    ROW is a label as the table prints it, or an experiment. For each of its runs: the journal's
    line with the numbers, weights, commit, machine, params, data, every attempt and SLURM job,
    MLflow's run, and the run that it started from, down to the first. Reads files alone.
    """
    from smt.verify.lineage import Lineage, find_row

    project, layout = load(scale)
    table_row = find_row(project, table, row)
    try:
        lines = list(Lineage(project, layout).row(table, table_row).lines())
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"records of {table_row.experiment}, or of what it started from, are damaged "
            f"({type(error).__name__}: {first_line(error)}); smt verify names what is wrong"
        ) from None
    for line in lines:
        click.echo(line)
