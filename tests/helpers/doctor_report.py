"""Running `smt doctor`, and reading what it printed."""

import os
import re
import subprocess
import sys

from tests.helpers import forkserver

LINE = re.compile(r"(ok|warning|error)\s+(slurm|[a-z]+(?: [a-z]+)?)\s{2,}(.+)")


class Report:
    """What a run of `smt doctor` printed."""

    def __init__(self, done):
        self.code, self.stderr = done.returncode, done.stderr
        *lines, self.verdict = done.stdout.splitlines() or [""]
        self.found = [LINE.fullmatch(line).groups() for line in lines]

    def of(self, subject):
        """Return level and text of the one finding on `subject`."""
        ((level, text),) = [(level, text) for level, name, text in self.found if name == subject]
        return level, text

    @property
    def subjects(self):
        return {name for _, name, _ in self.found}

    @property
    def errors(self):
        return {name for level, name, _ in self.found if level == "error"}


def doctor(project, *arguments, cluster=None, prefix=(), folder=None, **environment):
    """Run `smt doctor` as a user of `cluster` does, or as one who has none.

    It is a fork, but for what a `prefix` runs: a command that starts it.
    """
    kept = cluster.environment() if cluster else {**os.environ, "SLURM_CONF": "/nowhere"}
    kept = {name: value for name, value in kept.items() if not name.startswith(("SMT_", "MLFLOW"))}
    environment, folder = {**kept, **environment}, folder or project.folder
    if not prefix:
        return Report(forkserver.run("smt", "doctor", *arguments, cwd=folder, env=environment))
    command = [*prefix, sys.executable, "-m", "smt", "doctor", *arguments]
    return Report(
        subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    )
