"""`smt plan`: what the runs of a scale cost on a cluster, before any is started."""

import json
from typing import TYPE_CHECKING, Any

import click

from smt.commands.common import announce, gpu_kind, load, scale_option, warn_of
from smt.config.experiments import Run
from smt.config.project import Project
from smt.errors import EXIT_TRAINING, UserError
from smt.runs.paths import Layout

if TYPE_CHECKING:
    from smt.cluster.budget import Budget


EVERY = "all"
"""Stands for the names of all claims."""


@click.command()
@click.option("--gpu", metavar="KIND", help="Kind of GPU in params/cluster.yaml [the one in use].")
@click.option("--gpus-per-node", type=click.IntRange(min=1), help="GPUs of a node.")
@click.option("--wall-hours", type=click.FloatRange(min=0, min_open=True), help="Limit of a job.")
@click.option(
    "--efficiency",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="Fraction of the GPU's peak that training reaches.",
)
@click.option("--seeds", metavar="N,N...", help="Runs of these seeds only [all of the scale].")
@click.option(
    "--memory",
    is_flag=True,
    help="Rehearse each experiment on a fake GPU, where that was not done yet, and compare its "
    "memory with the GPU's. Exit 4 if one does not fit.",
)
@click.option(
    "--claims",
    is_flag=False,
    flag_value=EVERY,
    metavar="[NAME,NAME...]",
    help="What it takes to decide claims of params/claims.yaml [all]: seeds, runs, GPU-hours.",
)
@click.option(
    "--gpu-hours",
    metavar="N",
    help="The most claims that N GPU-hours decide, in order, and what is left.",
)
@click.option(
    "--spread",
    "spreads",
    multiple=True,
    metavar="[METRIC=]STD",
    help="Standard deviation over seeds, with --claims or --gpu-hours [seen, else "
    "params/claims.yaml].",
)
@click.option(
    "--power",
    metavar="P",
    help="Least probability of a verdict that seeds are planned for, with --claims or "
    "--gpu-hours [0.8].",
)
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV, a line an experiment or claim.")
@scale_option
def command(
    gpu: str | None,
    gpus_per_node: int | None,
    wall_hours: float | None,
    efficiency: float | None,
    seeds: str | None,
    memory: bool,
    claims: str | None,
    gpu_hours: str | None,
    spreads: tuple[str, ...],
    power: str | None,
    form: str | None,
    scale: str,
) -> None:
    """Estimate GPU-hours, wall time and requeues of every experiment and table.

    Options take the place of figures of params/cluster.yaml. What `smt status` calls done is left
    out of what is to do. With --claims or --gpu-hours: of the claims, and what decides them.
    """
    from smt.cluster import plan, states
    from smt.cluster.budget import Budget
    from smt.cluster.measured import measured_rates

    project, layout = load(scale)
    project = on_cluster(project, gpu, gpus_per_node, wall_hours, efficiency)
    if claims is not None or gpu_hours is not None:
        from smt.commands import plan_claims

        if memory or seeds is not None:
            option = "--memory" if memory else "--seeds"
            raise UserError(f"{option}: not with --claims or --gpu-hours, which choose the runs")
        wishes = plan_claims.Wishes(EVERY if claims is None else claims, gpu_hours, spreads, power)
        has_own_rate = not (gpu or efficiency)
        text = plan_claims.planned(project, layout, wishes, form, measured=has_own_rate)
        click.echo(text, nl=False)
        return
    if spreads or power is not None:
        option = "--spread" if spreads else "--power"
        raise UserError(f"{option}: only with --claims or --gpu-hours")
    every = states.read(project, layout)
    warn_of(every.damages)
    chosen = {run: each.state for run, each in every.items()}
    # What runs have reached holds on the GPUs that they ran on.
    rates = {} if gpu or efficiency else measured_rates(layout, every)
    budget = Budget(project, _chosen(project, seeds), chosen, rates)
    if memory:
        _print_with_memory(budget, layout, form)
        return
    formats = {"json": plan.as_json, "csv": plan.as_csv}
    click.echo(formats.get(form or "", plan.text)(budget), nl=False)


def _print_with_memory(budget: "Budget", layout: Layout, form: str | None) -> None:
    """Print the plan and what each of its experiments takes of the GPU's memory."""
    from smt.cluster import plan
    from smt.rehearsal import table
    from smt.rehearsal.memory import Rehearsed, fit

    if form == "csv":
        raise UserError("--memory --csv: there is no such form; valid: --memory, --memory --json")
    rehearsed = Rehearsed(budget.project, layout, announce)
    fits = [fit(rehearsed, name) for name in budget.estimates]
    if form == "json":
        document = json.loads(plan.as_json(budget)) | {"memory": [each.as_json() for each in fits]}
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(f"{plan.text(budget)}\n{table.text(budget.project, fits)}", nl=False)
    if not all(each.fits for each in fits):
        raise SystemExit(EXIT_TRAINING)


def on_cluster(
    project: Project,
    gpu: str | None,
    gpus_per_node: int | None,
    wall_hours: float | None,
    efficiency: float | None,
) -> Project:
    """Return the project with what the options say of the cluster."""
    figures: dict[str, Any] = {}
    if efficiency is not None:
        figures = {"efficiency": efficiency, "efficiency_source": "given as --efficiency"}
    cluster = project.on_gpu(gpu_kind(project, gpu), **figures).cluster
    changes = {
        "gpus_per_node": gpus_per_node or cluster.gpus_per_node,
        "wall_hours": wall_hours or cluster.wall_hours,
    }
    changed = cluster.model_copy(update=changes)
    useful = changed.useful_hours(project.scale_name)
    if useful <= 0:
        raise UserError(
            f"--wall-hours {changed.wall_hours:g}: no time to train between start-up and tail; "
            f"valid: more than {changed.wall_hours - useful:.3g}"
        )
    return project.model_copy(update={"cluster": changed})


def _chosen(project: Project, seeds: str | None) -> tuple[Run, ...]:
    """Return the runs of `seeds`, or all."""
    if seeds is None:
        return project.runs
    known = {str(run.seed) for run in project.runs}
    wanted = {seed.strip() for seed in seeds.split(",")}
    if not wanted <= known:
        valid = ", ".join(sorted(known, key=int))
        raise UserError(
            f"--seeds {seeds}: not all of it are seeds of scale {project.scale_name}; valid: "
            f"{valid}, with commas between"
        )
    return tuple(run for run in project.runs if str(run.seed) in wanted)
