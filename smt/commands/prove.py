"""`smt prove`: trainings killed at random end with the bytes of undisturbed ones."""

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from smt.cluster import cost
from smt.commands.common import find_run, load, scale_option, warn_if_not_interruptible
from smt.config.experiments import Run
from smt.config.project import Project
from smt.errors import EXIT_TRAINING, UserError

if TYPE_CHECKING:
    from smt.proof.launch import Launcher


@click.command()
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...")
@click.option("--seed", type=int, default=None, help="Seed of the runs [the first of the scale].")
@click.option("--ranks", type=click.IntRange(min=1), help="Processes [1, or the scale's set].")
@click.option("--kills", type=click.IntRange(min=1), help="Kills of each run [the scale's, or 6].")
@click.option("--draw", type=int, default=0, show_default=True, help="Seed of the kills.")
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
    signals at steps that are drawn from --draw. A run needs its manifest, and its parent trained.
    Exit code 4 if a pair is not equal.
    """
    project, layout = load(scale)
    slurm = {"nodes": nodes, "partition": partition, "account": account}
    chosen = [] if tables == "only" else _chosen(project, experiments, seed, ranks)
    for run, _ in chosen:
        _require_promise(project, run)
    launchers = [_launcher(launcher, project, run, processes, slurm) for run, processes in chosen]
    proving = project.scale.proof
    warn_if_not_interruptible()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    from smt.proof import table
    from smt.proof.run import Proof

    unequal = []
    for (run, processes), starter in zip(chosen, launchers, strict=True):
        proof = Proof(
            project, layout, run, starter, ranks=processes, draw=draw,
            kills=kills or (proving.kills if proving else 6),
        )  # fmt: skip
        outcome = proof.prove()
        count = Counter(each["signal"] for each in outcome["kills"])
        missed = outcome["kills_drawn"] - len(outcome["kills"])
        equal = table.is_equal(outcome)
        click.echo(
            f"{proof.title}: {sum(count.values())} kills "
            f"({', '.join(f'{number} {name}' for name, number in sorted(count.items()))}); "
            f"{f'for {missed} more no time was left; ' if missed else ''}"
            f"{'equal to the byte' if equal else 'NOT EQUAL, see ' + str(proof.record)}"
        )
        if not equal:
            unequal.append(run)
    if tables != "never":
        paths = table.write(project, layout)
        click.echo(f"{len(paths)} files in {layout.proof}; begin with {layout.proof}/proof.html")
    if unequal:
        raise _RunsDiffer(f"not equal: {', '.join(map(str, unequal))}; see {layout.proof}/proof.md")


class _RunsDiffer(UserError):
    exit_code = EXIT_TRAINING


def _chosen(
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
        (find_run(project, each.experiment, seed), ranks or each.ranks)
        for each in project.scale.proof.runs
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
    """Return what starts the trainings of a proof; `slurm` has what was given for SLURM alone."""
    from smt.proof.launch import LocalLauncher
    from smt.proof.plan import MOST_WORKERS
    from smt.proof.slurm import PROCESS_MB, Request, SlurmLauncher, ranks_per_node

    given = {option: value for option, value in slurm.items() if value is not None}
    if name == "local":
        for option, value in given.items():
            raise UserError(f"--{option} {value}: only for SLURM; add: --launcher slurm")
        return LocalLauncher()
    scale, request = project.scale, {"nodes": 1, **given}
    ranks_per_node(ranks, request["nodes"])
    return SlurmLauncher(
        Request(
            cpus=scale.cpus,
            memory_mb=PROCESS_MB * (1 + max(scale.expected_workers, MOST_WORKERS)),
            minutes=cost.runtime_minutes(cost.estimate(project, run.experiment), project.cluster),
            **request,
        )
    )
