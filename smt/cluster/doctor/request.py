"""What jobs ask of SLURM: the trainings' resources, and where the profile sends them."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yte

from smt.cluster.cost import Resources
from smt.errors import UserError, first_line

PROFILE = Path("workflow/profiles/slurm/config.yaml")
"""The profile of `snakemake --profile slurm`, from the root of the project."""

_OPTIONS = {
    "slurm_partition": "--partition",
    "slurm_account": "--account",
    "slurm_qos": "--qos",
    "slurm_constraint": "--constraint",
    "slurm_reservation": "--reservation",
}
"""Resource of a job in Snakemake -> option of sbatch."""


@dataclass(frozen=True)
class Choice:
    """A value, and who chose it."""

    value: str
    source: str


@dataclass(frozen=True)
class Destination:
    """Where jobs go."""

    choices: Mapping[str, Choice] = field(default_factory=dict)
    """By the resource's name: slurm_partition, slurm_account, ..."""
    extra: tuple[str, ...] = ()
    """Further options of sbatch: slurm_extra."""
    jobs: int | None = None
    """Jobs that Snakemake submits at most at once."""

    @property
    def partition(self) -> Choice | None:
        return self.choices.get("slurm_partition")

    @property
    def account(self) -> Choice | None:
        return self.choices.get("slurm_account")

    def options(self) -> list[str]:
        """Return the options of sbatch that say all this."""
        named = [f"{_OPTIONS[name]}={choice.value}" for name, choice in self.choices.items()]
        return [*named, *self.extra]


def destination(profile: Path, *, partition: str | None, account: str | None) -> Destination:
    """Return where jobs go: as given here, else by the profile.

    Options of sbatch in the environment are not among it: the executor keeps them from sbatch.

    Raises:
        UserError: the profile cannot be read.
    """
    content = _read(profile)
    defaults = dict(_pairs(content.get("default-resources")))
    given = {"slurm_partition": partition, "slurm_account": account}
    choices = {}
    for name, option in _OPTIONS.items():
        if value := given.get(name):
            choices[name] = Choice(value, option)
        elif value := defaults.get(name):
            choices[name] = Choice(value, f"{name} in {profile}")
    return Destination(choices, tuple(shlex.split(defaults.get("slurm_extra", ""))), _jobs(content))


def _read(profile: Path) -> Mapping[str, Any]:
    """Return what Snakemake reads from a profile, which may take values from the environment."""
    try:
        with profile.open() as file:
            content = yte.process_yaml(file, require_use_yte=True)
    except FileNotFoundError:
        raise UserError(
            f"{profile}: no such file; run this in the folder that has it, the project's root"
        ) from None
    except Exception as problem:  # whatever the expressions in it raise
        raise UserError(f"{profile}: cannot be read: {first_line(problem)}") from None
    return content if isinstance(content, Mapping) else {}


def _pairs(resources: Any) -> Iterator[tuple[str, str]]:
    """Yield the default resources of a profile, which are a mapping or a list of NAME=VALUE."""
    if isinstance(resources, Mapping):
        resources = [f"{name}={value}" for name, value in resources.items()]
    for each in resources or []:
        name, _, value = str(each).partition("=")
        yield name.strip(), value.strip().strip("'\"")


def _jobs(content: Mapping[str, Any]) -> int | None:
    jobs = str(content.get("jobs", ""))
    return int(jobs) if jobs.isdigit() else None


def of_training(resources: Resources) -> list[str]:
    """Return the options of sbatch for a training."""
    return [
        f"--nodes={resources.nodes}",
        f"--ntasks-per-node={resources.tasks_per_node}",
        f"--gpus-per-node={resources.gpus_per_node}",
        f"--cpus-per-task={resources.cpus_per_task}",
        f"--mem={resources.mem_mb}M",
        f"--time={resources.runtime}",
    ]


def described(resources: Resources) -> str:
    """Return the same in words."""
    cpus = resources.tasks_per_node * resources.cpus_per_task
    each = (
        f"{_count(resources.gpus_per_node, 'GPU')}, {_count(cpus, 'CPU')} and "
        f"{resources.mem_mb / 1000:.3g} GB"
    )
    return f"{_count(resources.nodes, 'node')} with {each}, for {resources.runtime / 60:.3g} h"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
