"""All checks, in the order in which their results help."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from smt.cluster.doctor import job, scheduler
from smt.cluster.doctor.check_result import CheckResult, CheckResults, error
from smt.cluster.doctor.job import JobOptions
from smt.cluster.doctor.project import data, data_disk, disk, mlflow
from smt.cluster.doctor.request import Destination
from smt.cluster.doctor.scheduler import Requests
from smt.cluster.slurm import Slurm
from smt.config.project import Project
from smt.errors import UserError
from smt.runs.paths import Layout


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What is about to be launched."""

    project: Project
    layout: Layout
    destination: Destination
    requests: Requests
    missing_data: tuple[str, ...]
    """A phrase for each data set that is not there and not made."""
    wait: float | None
    """Seconds for which a job may wait in the queue; None for no job."""


def check_results(launch: Launch) -> Iterator[CheckResult]:
    """Yield the results, check by check."""
    slurm, project, layout = Slurm(), launch.project, launch.layout
    results = list(_guarded("slurm", lambda: scheduler.client(slurm)))
    yield from results
    if _are_well(results):
        yield from _on_slurm(slurm, launch)
    yield from _guarded("data", lambda: data(project, layout, launch.missing_data))
    yield from _guarded("disk", lambda: disk(project, layout))
    yield from _guarded("data disk", lambda: data_disk(layout))
    yield from _guarded("mlflow", lambda: mlflow(layout.tracking_uri()))


def _on_slurm(slurm: Slurm, launch: Launch) -> CheckResults:
    destination, asked = launch.destination, launch.requests
    results = [
        *_guarded("partition", lambda: scheduler.partition(slurm, destination)),
        *_guarded("account", lambda: scheduler.account(slurm, destination)),
    ]
    yield from results
    if not _are_well(results):
        return  # every job would be refused for the same reason
    minutes = launch.project.scale.checkpoint_minutes
    yield from _guarded("request", lambda: scheduler.requests(slurm, destination, asked))
    yield from _guarded("time limit", lambda: scheduler.time_limit(slurm, destination, asked))
    yield from _guarded("preemption", lambda: scheduler.preemption(slurm, destination, minutes))
    yield from _guarded("requeue", lambda: scheduler.requeue(slurm))
    yield from _guarded("job limits", lambda: scheduler.job_limits(slurm, destination))
    yield from _guarded("node", lambda: _from_a_node(slurm, launch))


def _from_a_node(slurm: Slurm, launch: Launch) -> CheckResults:
    if launch.wait is None:
        return
    gpus = any(recipe.half_precision for recipe in launch.project.recipes.values())
    gpus_per_node = max(resources.gpus_per_node for resources in launch.requests)
    options = JobOptions(launch.destination, min(2, gpus_per_node), launch.wait)
    yield from job.from_a_node(slurm, options, launch.layout.results, gpus=gpus)


def _are_well(results: Iterable[CheckResult]) -> bool:
    return all(result.level != "error" for result in results)


def _guarded(subject: str, check: Callable[[], CheckResults]) -> CheckResults:
    """Yield a check's results; what it cannot find out is an error like others."""
    try:
        yield from check()
    except (UserError, OSError) as problem:
        yield error(subject, str(problem), "see to it, and run smt doctor again")
