"""Workflows of a few lines that run through the submitit executor, on the real cluster."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.waiting import PATIENCE, wait_for

TRAINER = Path(__file__).resolve().with_name("toy_trainer.py")


def training_rule(*, steps=100, manner="", name="train", params="", **resources):
    """Return a rule that runs the toy trainer; its output is made once all steps are done."""
    wanted = {"mem_mb": 300, "runtime": 10, **resources}
    lines = "".join(f"        {key}={value!r},\n" for key, value in wanted.items())
    return (
        f"rule {name}:\n"
        f"    output: '{name}.txt'\n"
        f"    log: 'logs/{name}.log'\n"
        + (f"    params: {params}\n" if params else "")
        + f"    resources:\n{lines}"
        f"    shell: '{sys.executable} {TRAINER} {name}.state {steps} {manner} 2>&1'\n"
        "           ' | (trap \"\" TERM; exec tee -a {log}) && touch {output}'\n"
    )


class Toy:
    """A folder with a workflow, whose Snakemake talks to the cluster."""

    def __init__(self, folder, cluster):
        self.folder, self.cluster = folder, cluster
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = cluster.environment() if cluster else dict(os.environ)

    def write(self, text):
        (self.folder / "Snakefile").write_text(text)

    def command(self, *arguments, **settings):
        given = {"status_interval": 2, **settings}
        options = [
            word for name, value in given.items()
            for word in (f"--submitit-{name.replace('_', '-')}", str(value))
        ]  # fmt: skip
        return [sys.executable, "-m", "snakemake", "--executor", "submitit", "--jobs", "50",
                "--nolock", "--rerun-incomplete", "--rerun-triggers", "input", "params",
                *options, *arguments]  # fmt: skip

    def start(self, *arguments, **settings):
        """Start Snakemake in a session of its own; what it prints goes to a file."""
        self.output = self.folder / f"driver-{time.monotonic_ns()}.log"
        with self.output.open("wb") as file:
            return subprocess.Popen(
                self.command(*arguments, **settings), cwd=self.folder, env=self.environment,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def finish(self, process):
        """Wait for Snakemake to end; return all that it printed."""
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
            pytest.fail(f"Snakemake did not end in {PATIENCE} s:\n{self.output.read_text()}")
        return self.output.read_text()

    def run(self, *arguments, **settings):
        """Run Snakemake to its end; return its exit code and what it printed."""
        process = self.start(*arguments, **settings)
        said = self.finish(process)
        return process.returncode, said

    def succeed(self, *arguments, **settings):
        code, said = self.run(*arguments, **settings)
        assert code == 0, said
        return said

    def fail(self, *arguments, **settings):
        """Run Snakemake, which has to fail; return the line with which it says why."""
        code, said = self.run(*arguments, **settings)
        assert code != 0, said
        return message(said)

    # --- what happens on the cluster --------------------------------------------------------------

    def starts(self, name="train"):
        """Return (first step, job number) of every start of the trainer."""
        path = self.folder / f"{name}.state.starts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(line.split()[0]), line.split()[1]) for line in lines]

    def await_starts(self, count, process, name="train"):
        """Wait until the trainer has been started `count` times, and has done a few steps."""
        self.await_that(lambda: len(self.starts(name)) >= count, process)
        time.sleep(1.0)
        return self.starts(name)[-1][1]

    def await_that(self, condition, process):
        """Wait for something that happens while Snakemake runs."""

        def is_met():
            assert process.poll() is None, f"Snakemake ended early:\n{self.output.read_text()}"
            return condition()

        wait_for(is_met, self.output.read_text, every=0.1)

    def records(self):
        folder = self.folder / ".snakemake" / "submitit" / "jobs"
        return [json.loads(path.read_text()) for path in folder.glob("*.json")]

    def jobs(self):
        """Return number and state of each job of this workflow that SLURM knows, by name."""
        listed = self.cluster.run(
            "squeue", "--noheader", "--states=all", "--format=%A %T %j %Z"
        ).stdout
        return {
            words[0]: words[1] for words in map(str.split, listed.splitlines())
            if words[3] == str(self.folder)
        }  # fmt: skip

    def recorded(self, output):
        """Return what Snakemake has recorded of how an output was made."""
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--detailed-summary", output],
            cwd=self.folder, capture_output=True, text=True, env=self.environment, check=True,
        )  # fmt: skip
        return done.stdout


def message(said):
    """Return the line of the driver that says why a job failed."""
    found = re.findall(r"^    message: (?!None)(.*)$", said, flags=re.M)
    assert found, said
    return found[-1]
