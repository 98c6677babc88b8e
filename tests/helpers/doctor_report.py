"""Runs `smt doctor` and parses its output."""

import os
import re
import subprocess
import sys

from tests.helpers import forkserver

LINE = re.compile(r"(ok|warning|error)\s+(slurm|[a-z]+(?: [a-z]+)?)\s{2,}(.+)")


class Report:
    """The parsed output of `smt doctor`."""

    def __init__(self, process):
        self.code, self.stderr = process.returncode, process.stderr
        *lines, self.verdict = process.stdout.splitlines() or [""]
        self.results = [LINE.fullmatch(line).groups() for line in lines]

    def result(self, subject):
        """Return level and text of the one result on `subject`."""
        ((level, text),) = [(level, text) for level, name, text in self.results if name == subject]
        return level, text

    @property
    def subjects(self):
        return {name for _, name, _ in self.results}

    @property
    def errors(self):
        return {name for level, name, _ in self.results if level == "error"}


def doctor(project, *arguments, cluster=None, prefix=(), folder=None, **environment):
    """Run `smt doctor` as a user of `cluster`, or without a cluster.

    It runs as a fork, unless `prefix` is a command that starts it.
    """
    base = cluster.environment() if cluster else {**os.environ, "SLURM_CONF": "/nowhere"}
    base = {name: value for name, value in base.items() if not name.startswith(("SMT_", "MLFLOW"))}
    environment, folder = {**base, **environment}, folder or project.folder
    if not prefix:
        return Report(forkserver.run("smt", "doctor", *arguments, cwd=folder, env=environment))
    command = [*prefix, sys.executable, "-m", "smt", "doctor", *arguments]
    return Report(
        subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    )
