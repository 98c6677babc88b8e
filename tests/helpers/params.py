"""The params of this checkout, read once by each process."""

from functools import cache

from smt.config.load import load_project
from smt.config.project import Project
from tests.helpers import ROOT


@cache
def project_at(scale: str) -> Project:
    """Return all that the params say at a scale. Tests share it, and change only a copy."""
    return load_project(ROOT / "params", scale)
