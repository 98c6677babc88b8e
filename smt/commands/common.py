"""Shared by all commands: the option --scale, and loading the project."""

import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

import click

from smt.config.experiments import Run
from smt.config.load import load_project, require_experiments
from smt.config.project import Project
from smt.errors import UserError
from smt.runs.paths import Layout, default_params
from smt.runs.record import DamagedRecord


def default_scale() -> str:
    """Return the scale of a command without --scale."""
    return os.environ.get("SMT_SCALE", "demo")


scale_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--scale",
    default=default_scale,
    show_default="SMT_SCALE, else demo",
    help="Scale of params/scales.yaml.",
)


def load(scale: str) -> tuple[Project, Layout]:
    """Return the validated project at `scale` and where its files lie."""
    return load_project(default_params(), scale), Layout.from_environment(scale)


def find_run(project: Project, experiment: str, seed: int | None) -> Run:
    """Return the run that a user names; without a seed the first one of the scale.

    Raises:
        UserError: no such experiment, or a seed that the scale does not have.
    """
    require_experiments(project, (experiment,))
    seeds = project.seeds(experiment)
    if seed is None:
        return Run(experiment=experiment, seed=seeds[0])
    if not 0 <= seed < 2**31:
        raise UserError(f"--seed {seed}: valid: 0 to {2**31 - 1}")
    return Run(experiment=experiment, seed=seed)


def gpu_kind(project: Project, gpu: str | None) -> str:
    """Return the kind of GPU that a user names, or the one in use.

    Raises:
        UserError: there is no such kind, or the pinned torch does not run on it.
    """
    kind = gpu or project.cluster.gpu
    problem = project.cluster.problem_of(kind)
    if problem is not None:
        raise UserError(f"--gpu {kind}: {problem}")
    return kind


def announce(text: str) -> None:
    """Say on stderr what is being done, where that takes a while."""
    click.echo(f"smt: {text}", err=True)


def warn_of(damages: Iterable[DamagedRecord]) -> None:
    """Warn on stderr of records that cannot be read: the command goes on with the others."""
    for damage in damages:
        click.echo(f"smt: warning: {damage}", err=True)


def warn_if_not_interruptible() -> None:
    """Warn on stderr, with the command to stop this process, if it ignores SIGINT.

    A shell that runs a script lets what it starts in the background ignore it, so that Ctrl-C stops
    the script alone; Python keeps to that, and so does a command that goes on until it is stopped.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        click.echo(
            "smt: Ctrl-C (SIGINT) is ignored, as in the background of a script; to stop this: "
            f"kill {os.getpid()}",
            err=True,
        )
