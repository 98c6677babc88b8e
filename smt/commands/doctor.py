"""`smt doctor`: what would keep trainings from running on the cluster, before a launch."""

import sys
from collections import Counter, defaultdict

import click

from smt import dag
from smt.cluster.cost import Resources
from smt.cluster.doctor import checkup, request
from smt.datasets import manifest
from smt.errors import EXIT_BAD_INPUT


@click.command()
@click.option("--partition", metavar="NAME", help="Partition [that of the profile].")
@click.option("--account", metavar="NAME", help="Account [that of the profile].")
@click.option("--job/--no-job", default=True, help="Look from a node, through a tiny job.")
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=120,
    show_default=True,
    help="How long that job may wait in the queue.",
)
@click.option("--scale", default="paper", show_default=True, help="Scale of params/scales.yaml.")
def command(partition: str | None, account: str | None, job: bool, wait: float, scale: str) -> None:
    """Check, before a first launch, all that `snakemake --profile slurm all` needs.

    A line each: ok, warning or error, with the remedy. Exit code 2 if there is an error.
    """
    plan = dag.load(scale)
    launch = checkup.Launch(
        project=plan.project,
        layout=plan.layout,
        destination=request.destination(request.PROFILE, partition=partition, account=account),
        requests=_requests(plan),
        missing_data=_missing_data(plan),
        wait=wait if job else None,
    )
    levels: Counter[str] = Counter()
    for result in checkup.check_results(launch):
        click.echo(result)
        levels[result.level] += 1
    click.echo(_verdict(levels["error"], levels["warning"], scale))
    if levels["error"]:
        sys.exit(EXIT_BAD_INPUT)


def _requests(plan: dag.Plan) -> dict[Resources, list[str]]:
    """Return the distinct resources of trainings, with the experiments that request them."""
    requests: defaultdict[Resources, dict[str, None]] = defaultdict(dict)
    for run in plan.runs():
        requests[plan.resources(run)][run.experiment] = None
    return {resources: list(experiments) for resources, experiments in requests.items()}


def _missing_data(plan: dag.Plan) -> tuple[str, ...]:
    """Return a phrase for each data set that the user has to provide, and is missing."""
    return tuple(
        phrase
        for key in manifest.keys_in_use(plan.project)
        if manifest.make_command(plan.project, key) is None
        for phrase in plan.missing_data(key)
    )


def _verdict(errors: int, warnings: int, scale: str) -> str:
    if errors:
        return f"not ready: {_count(errors, 'error')}, {_count(warnings, 'warning')}"
    launch = "snakemake --profile slurm all"
    command = launch if scale == "paper" else f"{launch} --config scale={scale}"
    return f"ready, {_count(warnings, 'warning')}; next: {command}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
