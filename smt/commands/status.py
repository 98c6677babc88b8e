"""`smt status`: the state and progress of every run of a scale."""

import os
import shutil
import sys
import time

import click

from smt.commands.common import find_run, load, scale_option, warn_if_not_interruptible
from smt.report import status_text
from smt.report.status import collect


@click.command()
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...")
@click.option(
    "--watch",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Look again after so long, until interrupted.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@scale_option
def command(experiments: tuple[str, ...], watch: float | None, as_json: bool, scale: str) -> None:
    """Show state and progress of the runs of EXPERIMENT; all by default.

    From SLURM's queue and from the files of trainings: not started, with what it waits for;
    queued with SLURM's reason; running with step, speed and time left; stopped half-way; done with
    its metric; failed with the cause; outdated where params, data or code version changed since.
    Times left are at the speed of about the last epoch. A run under way that is worse than seeds
    that are done, or than reference points of params/trajectory.yaml, is marked `off track`.
    Changes nothing.
    """
    project, layout = load(scale)
    for name in experiments:
        find_run(project, name, None)
    if watch is not None:
        warn_if_not_interruptible()
    try:
        while True:
            status = collect(project, layout, experiments)
            if watch is not None and sys.stdout.isatty():
                click.clear()
            if status.states.without_slurm:
                click.echo(
                    f"smt: SLURM is not reachable ({status.states.without_slurm}); states are read "
                    "from files only",
                    err=True,
                )
            if as_json:
                click.echo(status_text.as_json(status), nl=False)
            else:
                click.echo(status_text.text(status, _width()), nl=False, color=_colours())
            if watch is None:
                return
            time.sleep(watch)
    except KeyboardInterrupt:
        return  # how a watch ends


def _width() -> int:
    """Return the columns of the terminal, or the usual ones where there is none."""
    return (
        shutil.get_terminal_size((status_text.WIDTH, 0)).columns
        if sys.stdout.isatty()
        else status_text.WIDTH
    )


def _colours() -> bool | None:
    """Return whether to colour: None leaves it to whether there is a terminal."""
    return False if os.environ.get("NO_COLOR") else None
