"""A copy of the workflow and its params, in which a test edits params and runs commands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT, forkserver

RUN = re.compile(r"/runs/(\w+)/seed(\d+)/metrics\.json$")


class ProjectCopy:
    """Workflow and params without results and data; the code is that of this checkout."""

    def __init__(self, folder: Path, source: Path = ROOT) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("Snakefile", "local", "slurm", "params", "workflow"):
            _copy(source / name, folder / name)

    def copy(self, folder: Path) -> "ProjectCopy":
        """Return a copy with its data, its results and Snakemake's metadata."""
        other = ProjectCopy(folder, self.folder)
        for name in ("data", "results", ".snakemake"):
            _copy(self.folder / name, folder / name)
        return other

    def edit(self, file: str, old: str, new: str) -> int:
        """Replace the only occurrence of `old` in params/`file`; return its line number."""
        path = self.folder / "params" / file
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
        path.write_text(text.replace(old, new))
        return text[: text.index(old)].count("\n") + 1

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in this folder, as in a terminal."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
        )

    def start(self, *command: str, log: Path, **environment: str) -> "subprocess.Popen[bytes]":
        """Start a command in this folder; its output goes to a file."""
        with log.open("wb") as file:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment(**environment),
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a terminal, without variables of this project but `more`."""
        base = {name: value for name, value in os.environ.items() if not name.startswith("SMT_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**base, "PATH": path, **more}

    def smt(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.module("smt", *arguments, **environment)

    def snakemake(
        self, *arguments: str, new_processes: bool = False
    ) -> subprocess.CompletedProcess[str]:
        return self.module(
            "snakemake", "--profile", "local", *arguments, new_processes=new_processes
        )

    def module(
        self, name: str, *arguments: str, new_processes: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m name` in this folder, as a fork of the tests' fork server.

        So are the commands that it starts, unless they are to be `new_processes`.
        """
        if new_processes:
            env = self.environment(**environment)
        else:
            env = self.environment(**{"SMT_FORKSERVER": "0", **environment})
            env = forkserver.with_forked_commands(env)
        return forkserver.run(name, *arguments, cwd=self.folder, env=env)

    def plan(self, *arguments: str) -> "Plan":
        """Return what Snakemake would run, without running it."""
        done = self.snakemake("--summary", *arguments)
        assert done.returncode == 0, done.stderr
        return Plan([line.split("\t") for line in done.stdout.splitlines() if "\t" in line][1:])

    def pretend_done(self) -> None:
        """Create an empty file for each missing output of `all`, as if it were up to date.

        Manifests must exist, for fingerprints are computed from them.
        """
        for output in self.plan("all").pending:
            (self.folder / output).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / output).touch()
        done = self.snakemake("--touch", "--forceall", "all")
        assert done.returncode == 0, done.stderr


def _copy(source: Path, target: Path) -> None:
    # With modification times, by which Snakemake decides what to run.
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    elif source.exists():
        shutil.copy2(source, target, follow_symlinks=False)


class Plan:
    """The outputs that a target needs, and which of them would be made."""

    def __init__(self, rows: list[list[str]]) -> None:
        self.outputs = {output: rule for output, _, rule, *_ in rows}
        self.pending = {row[0]: row[2] for row in rows if row[-1] == "update pending"}

    @property
    def trainings(self) -> dict[tuple[str, int], str]:
        """Experiment and seed of each training that would run, with its rule."""
        matches = {RUN.search(output): rule for output, rule in self.pending.items()}
        return {(run[1], int(run[2])): rule for run, rule in matches.items() if run is not None}

    @property
    def experiments(self) -> set[str]:
        """Experiments that would be trained."""
        return {experiment for experiment, _ in self.trainings}

    @property
    def tables(self) -> set[str]:
        """Tables that would be made."""
        return {Path(output).stem for output, rule in self.pending.items() if rule == "table"}
