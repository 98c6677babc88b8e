"""All checks, in the order in which their findings help."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from smt.cluster.doctor import policies, probe, scheduler, storage, tracking
from smt.cluster.doctor.finding import Finding, Findings, error
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
    wanted: Destination
    requests: Requests
    missing_data: tuple[str, ...]
    """A phrase for each data set that is not there and not made."""
    wait: float | None
    """Seconds for which a job may wait in the queue; None for no job."""


def findings(launch: Launch) -> Iterator[Finding]:
    """Yield what is found, check by check."""
    slurm, project, layout = Slurm(), launch.project, launch.layout
    found = list(_guarded("slurm", lambda: scheduler.client(slurm)))
    yield from found
    if _are_well(found):
        yield from _on_slurm(slurm, launch)
    yield from _guarded("data", lambda: storage.data(project, layout, launch.missing_data))
    yield from _guarded("disk", lambda: storage.disk(project, layout))
    yield from _guarded("mlflow", lambda: tracking.mlflow(layout.tracking_uri()))


def _on_slurm(slurm: Slurm, launch: Launch) -> Findings:
    wanted, asked = launch.wanted, launch.requests
    found = [
        *_guarded("partition", lambda: scheduler.partition(slurm, wanted)),
        *_guarded("account", lambda: scheduler.account(slurm, wanted)),
    ]
    yield from found
    if not _are_well(found):
        return  # every job would be refused for the same reason
    minutes = launch.project.scale.checkpoint_minutes
    yield from _guarded("request", lambda: scheduler.requests(slurm, wanted, asked))
    yield from _guarded("time limit", lambda: scheduler.time_limit(slurm, wanted, asked))
    yield from _guarded("preemption", lambda: policies.preemption(slurm, wanted, minutes))
    yield from _guarded("requeue", lambda: policies.requeue(slurm))
    yield from _guarded("job limits", lambda: policies.job_limits(slurm, wanted))
    yield from _guarded("node", lambda: _from_a_node(slurm, launch))


def _from_a_node(slurm: Slurm, launch: Launch) -> Findings:
    if launch.wait is None:
        return
    gpus = any(recipe.half_precision for recipe in launch.project.recipes.values())
    results = launch.layout.results
    yield from probe.from_a_node(slurm, launch.wanted, results, gpus=gpus, wait=launch.wait)


def _are_well(found: Iterable[Finding]) -> bool:
    return all(each.level != "error" for each in found)


def _guarded(subject: str, check: Callable[[], Findings]) -> Findings:
    """Yield a check's findings; what it cannot find out is an error like others."""
    try:
        yield from check()
    except (UserError, OSError) as problem:
        yield error(subject, str(problem), "see to it, and run smt doctor again")
