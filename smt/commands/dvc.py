"""`smt dvc`: record in DVC what Snakemake has made, and restore it."""

import click

from smt.commands.common import find_run, load, scale_option, warn_of
from smt.config.load import require_experiments


@click.group()
def command() -> None:
    """Data, runs and tables in DVC. Snakemake makes them; nothing here runs inside a job."""


@command.command()
@scale_option
def record(scale: str) -> None:
    """Record what `snakemake all` has made, without running it again.

    Brings dvc.yaml up to params/ first. Then `dvc status` is clean, `dvc repro` does nothing, and
    `dvc push` carries it away. While runs are missing, those that are done are recorded.
    """
    from smt.versioning import operations

    project, layout = load(scale)
    summary = operations.record(project, layout)
    warn_of(summary.damages)
    if summary.is_new_pipeline:
        click.echo("dvc.yaml was updated to params/; commit it in git with dvc.lock")
    others = ", ".join(f"{count} {state}" for state, count in summary.other_states.items())
    part = f"of {len(project.runs)}; others: {others or 'none, but tables are missing'}"
    what = "all, with data and tables" if summary.is_complete else part
    click.echo(f"recorded: {summary.runs} runs, {what}; commit dvc.lock in git, then: dvc push")


@command.command()
@click.argument("experiments", nargs=-1)
@scale_option
def restore(experiments: tuple[str, ...], scale: str) -> None:
    """Bring back from DVC's remote what it has of EXPERIMENTS, or everything.

    As `dvc pull`; then demo data are made again and Snakemake is told what is there, so that
    neither has anything to do. `smt sync` fills MLflow from the journals that came along.
    """
    from smt.versioning import operations

    project, layout = load(scale)
    require_experiments(project, experiments)
    runs, damages = operations.restore(project, layout, experiments)
    warn_of(damages)
    click.echo(f"restored: {len(runs)} runs; to fill MLflow: smt sync --scale {scale}")


@command.command(hidden=True)
@click.argument("what", type=click.Choice(("dag", "run", "tables")))
@click.argument("experiment", required=False)
@click.option("--seed", type=int)
@scale_option
def make(what: str, experiment: str | None, seed: int | None, scale: str) -> None:
    """Run a stage of dvc.yaml."""
    from smt.versioning import operations

    project, layout = load(scale)
    if what == "dag":
        operations.make_dag(project, layout)
    elif what == "run" and experiment is not None:
        operations.make_run(project, layout, find_run(project, experiment, seed))
