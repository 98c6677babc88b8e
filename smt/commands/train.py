"""`smt train`: one run, from its first step or from its last checkpoint."""

import logging
import sys

import click

from smt.commands.common import find_run, load, scale_option
from smt.engine import launch, requeue
from smt.engine.preempt import StopRequest
from smt.tracking import sender


@click.command(
    epilog="Several processes: torchrun --nproc-per-node N -m smt train EXPERIMENT ...; in a SLURM "
    "job of several tasks this command starts itself once for each."
)
@click.argument("experiment")
@click.option("--seed", type=int, default=None, help="Seed of the run [the first of the scale].")
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Longest time between two checkpoints [the scale's].",
)
@click.option(
    "--checkpoint-steps",
    type=click.IntRange(min=1),
    help="Most steps between two checkpoints [the scale's]; each epoch ends in one as well.",
)
@click.option(
    "--stall-minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Time without a step after which it exits as resumable [the scale's].",
)
@click.option(
    "--workers", type=click.IntRange(min=0), help="Data workers of each process [the scale's]."
)
@click.option(
    "--allow-change",
    is_flag=True,
    envvar="SMT_ALLOW_CHANGE",
    help="Resume although the code has changed since the run began, or start again although it is "
    "unfinished with other params; either is recorded.",
)
@click.option(
    "--send/--no-send",
    default=sender.is_enabled,
    help="Send the journal to MLflow while it grows, from a process that training never waits for; "
    "`smt sync` does so later [yes, unless SMT_SEND=0].",
)
@scale_option
def command(
    experiment: str,
    seed: int | None,
    checkpoint_minutes: float | None,
    checkpoint_steps: int | None,
    stall_minutes: float | None,
    workers: int | None,
    allow_change: bool,
    send: bool,
    scale: str,
) -> None:
    """Train EXPERIMENT of params/experiments.yaml, or resume it.

    A run that is done is left as it is. On SIGTERM, SIGINT or SIGUSR1/2 the training finishes its
    step, saves, and exits with 75: the same command resumes from there, to the same
    bytes. None of the options changes the result.
    """
    launch.launch_with_srun(sys.argv[1:])
    stop = StopRequest().install()  # before torch is imported, which takes seconds
    project, layout = load(scale)
    run = find_run(project, experiment, seed)
    given = project.scale

    from smt.engine import distributed
    from smt.engine.trainer import TrainingStopped
    from smt.errors import EXIT_RESUME
    from smt.runs.claim import ClaimLost, RunHeld
    from smt.tasks.training import Options, RunTraining

    options = Options(
        checkpoint_seconds=60 * (checkpoint_minutes or given.checkpoint_minutes),
        checkpoint_steps=checkpoint_steps or given.checkpoint_steps,
        stall_seconds=60 * (stall_minutes or given.stall_minutes),
        workers=given.workers if workers is None else workers,
        allow_change=allow_change,
    )
    try:
        ranks = distributed.start(given.threads, project.recipe_of(run.experiment))
        logging.basicConfig(
            level=logging.INFO if ranks.is_first else logging.WARNING,
            format="%(asctime)s %(message)s",
            datefmt="%H:%M:%S",
        )
        with ranks.fail_together():
            training = RunTraining(project, layout, run, ranks)
            is_done = training.is_done()
        if is_done:
            if ranks.is_first:
                click.echo(f"{run} is done: {layout.metrics(run)}")
            return
        if send and ranks.is_first:
            sender.start(layout)
        training.train(stop, options)
    except TrainingStopped as stopped:
        requeue.request_requeue()
        if ranks.is_first:
            click.echo(f"smt: {run} {stopped}; the same command resumes", err=True)
        sys.exit(EXIT_RESUME)
    except distributed.PeerLost:
        requeue.request_requeue()
        distributed.stop(wait=False)
        raise
    except ClaimLost:
        # Exit 0 where the other has finished: a failed job's outputs are removed by Snakemake.
        if training.is_done():
            return
        if ranks.is_first:
            raise
        sys.exit(EXIT_RESUME)
    except RunHeld:
        requeue.request_requeue(blocked=True)
        raise
    except distributed.PeerFailed as failed:  # that rank has requested a requeue, if there is one
        sys.exit(failed.exit_code)
    finally:
        distributed.stop()
