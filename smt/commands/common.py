"""What every command shares: the choice of scale, and loading the project at it."""

import os
from collections.abc import Callable
from typing import Any

import click

from smt import params, spec
from smt.layout import Layout, default_params

scale_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--scale",
    default=lambda: os.environ.get("SMT_SCALE", "demo"),
    show_default="SMT_SCALE, else demo",
    help="Scale of params/scales.yaml.",
)


def load(scale: str) -> tuple[spec.Project, Layout]:
    """Return the validated project at `scale` and where its files lie."""
    return params.load_project(default_params(), scale), Layout.from_environment(scale)
