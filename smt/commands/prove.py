"""`smt prove`: trainings killed at random end with the bytes of undisturbed ones."""

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smt.cluster import cost
from smt.commands.common import (
    find_run,
    load,
    scale_option,
    warn_if_not_interruptible,
    warn_of,
)
from smt.config.experiments import Run
from smt.config.project import Project
from smt.errors import EXIT_TRAINING, UserError

if TYPE_CHECKING:
    from smt.proof.launch import Launcher
    from smt.proof.record import ProofRecord


@click.command()
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...")
@click.option("--seed", type=int, default=None, help="Seed of the runs [the first of the scale].")
@click.option("--ranks", type=click.IntRange(min=1), help="Processes [1, or the scale's set].")
@click.option("--kills", type=click.IntRange(min=0), help="Kills of each run [the scale's, or 6].")
@click.option(
    "--event",
    "events",
    multiple=True,
    metavar="COMMAND",
    help="Run COMMAND in a shell at a drawn step, in each run; can be repeated. SMT_PROOF_NODE, "
    "_RANK, _PID and _STEP tell it of a rank, SMT_PROOF_JOB and _JOB_STEP of its job.",
)
@click.option("--draw", type=int, default=0, show_default=True, help="Seed of kills and events.")
@click.option(
    "--launcher",
    type=click.Choice(("local", "slurm")),
    default="local",
    show_default=True,
    help="Processes of this machine, or of SLURM's nodes: by srun, inside of a job or without one.",
)
@click.option("--nodes", type=click.IntRange(min=1), help="Nodes that the processes share [1].")
@click.option("--partition", help="SLURM's partition [SLURM_PARTITION, SBATCH_PARTITION].")
@click.option("--account", help="SLURM's account [SLURM_ACCOUNT, SBATCH_ACCOUNT].")
@click.option(
    "--tables",
    type=click.Choice(("after", "only", "never")),
    default="after",
    show_default=True,
    help="When to make the tables of all proofs that are there.",
)
@scale_option
def command(
    experiments: tuple[str, ...],
    seed: int | None,
    ranks: int | None,
    kills: int | None,
    events: tuple[str, ...],
    draw: int,
    launcher: str,
    nodes: int | None,
    partition: str | None,
    account: str | None,
    tables: str,
    scale: str,
) -> None:
    """Train EXPERIMENTs undisturbed and killed, and compare weights and journals byte for byte.

    Without EXPERIMENT: the runs that params/scales.yaml names under `proof`. Kills are real
    signals at steps that are drawn from --draw, among them the events of --event. A run needs its
    manifest, and its parent trained. Exit code 4 if a pair is not equal.
    """
    if kills == 0 and not events:
        raise UserError("--kills 0: nothing would interrupt the trainings; add: --event COMMAND")
    project, layout = load(scale)
    slurm = {"nodes": nodes, "partition": partition, "account": account}
    selected = [] if tables == "only" else _selected(project, experiments, seed, ranks)
    for run, _ in selected:
        _require_promise(project, run)
    launchers = [_launcher(launcher, project, run, processes, slurm) for run, processes in selected]
    proving = project.scale.proof
    warn_if_not_interruptible()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    from smt.proof import table
    from smt.proof.run import Proof

    unequal = []
    for (run, processes), starter in zip(selected, launchers, strict=True):
        proof = Proof(
            project, layout, run, starter, ranks=processes, draw=draw, events=events,
            kills=kills if kills is not None else proving.kills if proving else 6,
        )  # fmt: skip
        result = proof.prove()
        click.echo(f"{proof.title}: {_summary(result, proof.path)}")
        if not result.is_equal:
            unequal.append(run)
    if tables != "never":
        paths, damages = table.write(project, layout)
        warn_of(damages)
        click.echo(f"{len(paths)} files in {layout.proof}; begin with {layout.proof}/proof.html")
    if unequal:
        raise _RunsDiffer(f"not equal: {', '.join(map(str, unequal))}; see {layout.proof}/proof.md")


class _RunsDiffer(UserError):
    exit_code = EXIT_TRAINING


def _summary(result: "ProofRecord", path: Path) -> str:
    """Return kills by signal, events, what came too late, and whether the pair is equal."""
    signals = sorted(Counter(kill.signal for kill in result.kills).items())
    by_signal = f" ({', '.join(f'{number} {name}' for name, number in signals)})" if signals else ""
    missed = result.kills_missed + result.events_missed
    return (
        f"{len(result.kills)} kills{by_signal}; "
        f"{f'{len(result.events)} events; ' if result.events_drawn else ''}"
        f"{f'for {missed} more no time was left; ' if missed else ''}"
        f"{'equal to the byte' if result.is_equal else f'NOT EQUAL, see {path}'}"
    )


def _selected(
    project: Project, experiments: tuple[str, ...], seed: int | None, ranks: int | None
) -> list[tuple[Run, int]]:
    if experiments:
        return [(find_run(project, name, seed), ranks or 1) for name in experiments]
    if project.scale.proof is None:
        raise UserError(
            f"scale {project.scale_name} names no runs to prove (params/scales.yaml: proof); name "
            "experiments: smt prove EXPERIMENT..."
        )
    return [
        (find_run(project, entry.experiment, seed), ranks or entry.ranks)
        for entry in project.scale.proof.runs
    ]


def _require_promise(project: Project, run: Run) -> None:
    recipe = project.recipe_of(run.experiment)
    if not recipe.deterministic:
        name = project.experiments[run.experiment].recipe
        raise UserError(
            f"{run}: recipe {name} has deterministic: false (params/{recipe.FILE}), which gives up "
            "the same bytes; there is nothing to prove, unless it is set to true"
        )


def _launcher(
    name: str, project: Project, run: Run, ranks: int, slurm: dict[str, Any]
) -> "Launcher":
    """Return the launcher of a proof's trainings; `slurm` holds the options for SLURM alone."""
    from smt.proof.launch import LocalLauncher
    from smt.proof.plan import MOST_WORKERS
    from smt.proof.slurm import PROCESS_MB, Request, SlurmLauncher, ranks_per_node

    options = {option: value for option, value in slurm.items() if value is not None}
    if name == "local":
        for option, value in options.items():
            raise UserError(f"--{option} {value}: only for SLURM; add: --launcher slurm")
        return LocalLauncher()
    scale, request = project.scale, {"nodes": 1, **options}
    ranks_per_node(ranks, request["nodes"])
    return SlurmLauncher(
        Request(
            cpus=scale.cpus,
            memory_mb=PROCESS_MB * (1 + max(scale.expected_workers, MOST_WORKERS)),
            minutes=cost.runtime_minutes(cost.estimate(project, run.experiment), project.cluster),
            **request,
        )
    )
