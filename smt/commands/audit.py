"""`smt audit`: stretches of a finished run are trained again and compared byte for byte."""

import logging
import secrets
import sys
from typing import TYPE_CHECKING

import click

from smt.commands.common import announce, find_run, load, scale_option
from smt.engine import launch
from smt.engine.preempt import StopRequest
from smt.errors import EXIT_UNDECIDED, EXIT_UNVERIFIED, UserError

if TYPE_CHECKING:
    from smt.engine.distributed import Ranks
    from smt.replay.subject import Subject
    from smt.runs.milestones import Stretch
    from smt.runs.replays import Replay


SEGMENTS = 5
"""Stretches that are trained again unless the user says otherwise."""


@click.command()
@click.argument("experiment")
@click.option("--seed", type=int, default=None, help="Seed of the run [the first of the scale].")
@click.option(
    "--segments",
    metavar="N|all",
    help=f"Stretches between milestones to train again, drawn at random [{SEGMENTS}, or all of "
    "fewer].",
)
@click.option(
    "--draw", type=click.IntRange(0, 2**31 - 1), help="Seed of the draw, to repeat it [random]."
)
@click.option("--workers", type=click.IntRange(min=0), help="Data workers of each process.")
@scale_option
def command(
    experiment: str,
    seed: int | None,
    segments: str | None,
    draw: int | None,
    workers: int | None,
    scale: str,
) -> None:
    """Train stretches of EXPERIMENT's run again, and compare them with its milestones.

    A run keeps checkpoints, its milestones (`keep_milestones` in params/scales.yaml), and its
    journal chains their digests. Equal bytes prove that a stretch was trained by this code, from
    these data and params. Nothing of the run is changed; the outcome goes to audit.json beside it.
    Exit code 5 if something differs or was replaced; 6 if bytes differ, but so do hardware,
    versions or code, so that nothing is proved either way.
    """
    launch.launch_with_srun(sys.argv[1:])
    stop = StopRequest().install()  # before torch is imported, which takes seconds
    project, layout = load(scale)
    run = find_run(project, experiment, seed)

    from smt.engine import distributed
    from smt.engine.trainer import TrainingStopped
    from smt.replay import subject as subjects

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        ranks = distributed.start(project.scale.threads, project.recipe_of(run.experiment))
        with ranks.fail_together():
            subject = subjects.find(project, layout, run)
            _require_world_size(subject, ranks)
        draw = ranks.broadcast(secrets.randbelow(2**31) if draw is None else draw)
        with ranks.fail_together():
            total = len(subject.stretches)
            stretches = subjects.select(
                subject.stretches, segments or str(min(SEGMENTS, total)), draw
            )
            if ranks.is_first:
                subject.require_inputs(start=stretches[0].start.step == 0)
                _require_consistent(subject)
                _announce(subject, stretches, draw)
        replays = _replay(subject, stretches, ranks, stop, workers)
        if ranks.is_first:
            _conclude(subject, replays)
    except TrainingStopped:
        raise click.Abort from None
    except distributed.PeerFailed as failed:
        sys.exit(failed.exit_code)
    finally:
        distributed.stop()


def _require_world_size(subject: "Subject", ranks: "Ranks") -> None:
    """Refuse another number of processes than the run had: sums would differ for certain."""
    environments = (attempt.environment for attempt in subject.provenance.attempts)
    sizes = sorted({each.world_size for each in environments if each is not None})
    if sizes and ranks.world_size not in sizes:
        many = sizes[-1] > 1
        program = f"torchrun --nproc-per-node {sizes[-1]} -m smt" if many else "smt"
        raise UserError(
            f"{subject.run} was trained on {' and '.join(map(str, sizes))} "
            f"process{'es' if many else ''}, and this is {ranks.world_size}; run: {program} audit "
            f"{subject.run.experiment} --seed {subject.run.seed} --scale {subject.layout.scale}"
        )


def _require_consistent(subject: "Subject") -> None:
    """Refuse a run whose files contradict each other; a line for each contradiction."""
    from smt.replay.subject import Unproved

    problems = subject.problems()
    for problem in problems[:-1]:
        click.echo(problem)
    if problems:
        raise Unproved(problems[-1])


def _announce(subject: "Subject", stretches: "list[Stretch]", draw: int) -> None:
    from smt.engine.progress import duration

    steps, total = sum(each.steps for each in stretches), subject.final.steps
    seconds = subject.final.wall_seconds * steps / total
    announce(
        f"{subject.run}: {len(stretches)} of {len(subject.stretches)} stretches, {steps:,} of "
        f"{total:,} steps, about {duration(seconds)} as fast as the run; drawn by --draw {draw}"
    )


def _replay(
    subject: "Subject",
    stretches: "list[Stretch]",
    ranks: "Ranks",
    stop: StopRequest,
    workers: int | None,
) -> "list[Replay]":
    """Train the stretches again, and write down and print what comes of each."""
    from contextlib import ExitStack

    from smt.engine import cpus, rendezvous
    from smt.replay.stretch import Replayer, scratch
    from smt.runs import replays
    from smt.tasks.failures import Failures

    given = subject.project.scale.workers if workers is None else workers
    replayer = Replayer(subject, ranks, stop, cpus.data_workers(given, ranks))
    done = []
    stop.defer_signals()
    rendezvous.limit_steps(60 * subject.project.scale.stall_minutes)
    with ExitStack() as stack:
        failures = Failures(subject.run, ranks, replayer.folder)
        stack.enter_context(failures.detect_peer_loss())
        with ranks.fail_together():
            if ranks.is_first:
                stack.enter_context(scratch(replayer.folder.parent))
        for stretch in stretches:
            replay = replayer.replay(stretch)
            done.append(replay)
            if ranks.is_first:
                total = len(subject.stretches)
                replays.add(subject.layout, subject.run, subject.final, total, replay)
                click.echo(f"{stretch}: {_outcome(replay)}")
    return done


def _outcome(replay: "Replay") -> str:
    unlike = "; ".join(replay.unlike)
    if replay.outcome == "equal":
        return f"equal to the byte{f', also with {unlike}' if unlike else ''}"
    if replay.outcome == "differs":
        return f"DIFFERS: {replay.difference}"
    return f"not on like hardware or code, so nothing is proved: {replay.difference} ({unlike})"


def _conclude(subject: "Subject", replays: "list[Replay]") -> None:
    """Print what the outcomes prove together, and exit as they say."""
    from smt.replay.subject import detection_probability

    outcomes = [replay.outcome for replay in replays]
    drawn, total = len(outcomes), len(subject.stretches)
    click.echo(f"{subject.layout.audit(subject.run)} has the outcome")
    if "differs" in outcomes:
        raise SystemExit(EXIT_UNVERIFIED)
    if "undecided" in outcomes:
        raise SystemExit(EXIT_UNDECIDED)
    found = detection_probability(total, drawn)
    click.echo(
        f"{subject.run}: {drawn} of {total} stretches are equal to the byte; one that was trained "
        f"otherwise would have been among them with a probability of {found:.0%}"
    )
