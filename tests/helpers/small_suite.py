"""A checkout with four tests, one of each kind, for tests of the Makefile's targets."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT

LINT = ("ruff", "ruff", "mypy", "mypy", "lint-imports", "snakefmt", "snakemake", "mkdocs")
"""Programs that `make lint` calls."""

KINDS = {
    f"{folder}_{kind}": (folder, mark)
    for folder in ("unit", "integration")
    for kind, mark in (("quick", ""), ("slow", "@pytest.mark.slow\n"))
}
"""Name of a test -> its folder and its mark."""

_TEST = """import os

import pytest


{mark}def test_it():
    with open({log!r}, "a") as log:
        print({name!r} + os.environ.get("CI", ""), file=log)
"""


class Suite:
    """An environment with the real pytest; all other programs only log that they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("smt", "workflow", "benchmarks"):
            (folder / name).mkdir(parents=True)
        add_environment(folder)
        for name in set(LINT):
            self.add_program(name, self.note(name))
        self.add_program("python", "")  # no output: no packages are missing
        self.add_program("pytest", f'exec {sys.executable} -m pytest "$@"')
        for name, (test_folder, mark) in KINDS.items():
            path = folder / "tests" / test_folder / f"test_{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_TEST.format(name=name, mark=mark, log=str(self._log)))

    def note(self, name: str) -> str:
        """Return the line of shell by which a program logs that it was called."""
        return f'echo {name} >> "{self._log}"'

    def add_program(self, name: str, line: str) -> None:
        """Add a program to the environment: a line of shell."""
        write_program(self.folder / ".venv" / "bin" / name, line)

    @property
    def _log(self) -> Path:
        return self.folder / "called.txt"

    def called(self) -> list[str]:
        """Return the programs and tests that have run since the last call, in order."""
        names = self._log.read_text().split() if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        return names

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of this process without variables of this run of pytest."""
        prefixes = ("PYTEST_", "TESTS_", "CI")
        base = {name: it for name, it in os.environ.items() if not name.startswith(prefixes)}
        return base | more

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(**environment),
            capture_output=True, text=True,
        )  # fmt: skip


def add_environment(folder: Path) -> None:
    """Copy the Makefile into a folder, with an environment that it takes for installed."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
        os.utime(folder / name, (1, 1))
    (folder / ".venv" / "installed").touch()


def write_program(path: Path, line: str) -> None:
    """Write a program that is a line of shell."""
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
