"""`smt sync`: sends new lines of journals to MLflow."""

import signal
import sys
import time

import click

from smt.commands.common import load, scale_option, warn_if_not_interruptible
from smt.config.project import Project
from smt.errors import UserError
from smt.runs.paths import Layout


@click.command()
@click.option(
    "--experiment", "experiments", multiple=True, metavar="NAME", help="Only this one; repeatable."
)
@click.option(
    "--files/--no-files",
    default=True,
    envvar="SMT_SYNC_FILES",
    help="Send weights, numbers and provenance of finished runs as artifacts as well [yes].",
)
@click.option("--register", is_flag=True, help="Enter the weights in MLflow's model registry.")
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1),
    is_flag=False,
    flag_value=30.0,
    metavar="[SECONDS]",
    help="Go on sending, every 30 seconds or as given, until stopped; one process of a folder.",
)
@click.option("--while-pid", type=int, hidden=True, help="Watch as long as this process lives.")
@scale_option
def command(
    experiments: tuple[str, ...],
    files: bool,
    register: bool,
    watch: float | None,
    while_pid: int | None,
    scale: str,
) -> None:
    """Send what is new in the journals of all runs to MLflow.

    Goes to MLFLOW_TRACKING_URI, else to mlflow.db in the results folder. May be typed at any time
    and any number of times, while runs train or after: nothing is sent twice. Each table is an
    experiment of MLflow's.
    """
    if register and not files:
        raise UserError("--register needs the weights in MLflow: leave --no-files away")
    project, layout = load(scale)
    if watch is None:
        click.echo(_once(project, layout, experiments, files, register))
        return
    if register:
        raise UserError("--register enters what is done; leave --watch away")
    if while_pid is None:
        warn_if_not_interruptible()
    _watch(project, layout, experiments, files, watch, while_pid)


def _once(
    project: Project, layout: Layout, experiments: tuple[str, ...], files: bool, register: bool
) -> str:
    from smt.tracking.client import redact_password
    from smt.tracking.sync import sync

    result = sync(project, layout, experiments, files=files, register=register)
    lines = [
        f"{folder}: the run in MLflow was inconsistent with the journal; created again"
        for folder in result.recreated_runs
    ]
    lines += [f"in the model registry: {version}" for version in result.model_versions]
    lines.append(
        f"{result.runs} runs in MLflow at {redact_password(layout.tracking_uri())}: "
        f"{result.updated_runs} had something new ({result.points} values), files of "
        f"{result.uploads} sent; receipt: {layout.sync_receipt}"
    )
    return "\n".join(lines)


def _watch(
    project: Project,
    layout: Layout,
    experiments: tuple[str, ...],
    files: bool,
    period: float,
    pid: int | None,
) -> None:
    from smt.tracking import sender

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # leaves no half-written file

    def sync_once() -> str | None:
        from smt.tracking.sync import sync

        result = sync(project, layout, experiments, files=files)
        if not result.updated_runs and not result.uploads:
            return None
        return (
            f"sent {result.points} values of {result.updated_runs} runs, files of {result.uploads}"
        )

    for message in sender.watch(layout, sync_once, period, pid):
        click.echo(f"{time.strftime('%H:%M:%S')} {message}")
