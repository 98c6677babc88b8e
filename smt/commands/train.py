"""`smt train`: one run, from its first step or from its last checkpoint."""

import logging
import sys

import click

from smt.commands.common import find_run, load, scale_option
from smt.engine.preempt import StopRequest


@click.command(epilog="Several processes: torchrun --nproc-per-node N -m smt train EXPERIMENT ...")
@click.argument("experiment")
@click.option("--seed", type=int, default=None, help="Seed of the run [the first of the scale].")
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Longest time between two checkpoints; each epoch ends in one as well.",
)
@scale_option
def command(experiment: str, seed: int | None, checkpoint_minutes: float, scale: str) -> None:
    """Train EXPERIMENT of params/experiments.yaml, or go on with it.

    A run that is done already is left as it is. Asked to stop by SIGTERM, SIGINT or SIGUSR1/2 it
    finishes its step, saves, and exits with 75: the same command goes on from there.
    """
    stop = StopRequest().install()  # before torch is imported, which takes seconds
    project, layout = load(scale)
    run = find_run(project, experiment, seed)

    from smt.engine import distributed
    from smt.engine.trainer import Stopped
    from smt.errors import EXIT_RESUME
    from smt.tasks.training import RunTraining

    ranks = distributed.start(project.scale.threads)
    logging.basicConfig(
        level=logging.INFO if ranks.is_first else logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )
    try:
        training = RunTraining(project, layout, run, ranks)
        if training.is_done():
            click.echo(f"{run} is done: {layout.metrics(run)}")
            return
        training.train(stop, checkpoint_minutes * 60)
    except Stopped as stopped:
        click.echo(f"smt: {run} {stopped}; the same command goes on", err=True)
        sys.exit(EXIT_RESUME)
    finally:
        distributed.stop()
