"""Workflows of a few lines that run through the submitit executor, on the real cluster."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from testbed.waiting import PATIENCE, wait_for

TRAINER = Path(__file__).resolve().with_name("toy_trainer.py")


def _launch(module, *arguments, cwd, env, stdout=None, stderr=None):
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr,
                            start_new_session=True)  # fmt: skip


launch = _launch
"""What starts Snakemake: a new process, or whatever quicker way a test suite has."""


def training_rule(*, steps="told", manner="", name="train", params="", **resources):
    """Return a rule that runs the toy trainer; its output is made once all steps are done.

    By default those are as many as it does until `Toy.let_finish`.
    """
    wanted = {"mem_mb": 300, "runtime": 10, "resumable": True, **resources}
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


def rule(command, name="r", **resources):
    """Return a rule of one shell command, whose output is `name`.txt."""
    given = {"mem_mb": 300, "runtime": 5, **resources}
    lines = "".join(f"        {key}={value!r},\n" for key, value in given.items())
    return (
        f"rule {name}:\n    output: '{name}.txt'\n    resources:\n{lines}    shell: {command!r}\n"
    )


def save_and_stop(cluster, job):
    """Signal a job as SLURM does some time before its limit."""
    cluster.run("scancel", "--batch", "--signal=USR2", job)


class Driver:
    """A Snakemake that runs, and what it prints."""

    def __init__(self, process, output):
        self.process, self.output = process, output

    @property
    def code(self):
        """Its exit code, or None while it runs."""
        return self.process.poll()

    def said(self):
        return self.output.read_text()

    def send_signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """End it as nothing can prepare for, and return when it is gone."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def finish(self):
        """Wait for it to end; return all that it printed."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"Snakemake did not end in {PATIENCE:.0f} s:\n{self.said()}")
        return self.said()

    def succeed(self):
        said = self.finish()
        assert self.code == 0, said
        return said

    def fail(self):
        """Wait for it to end, which has to be in failure; return all that it printed."""
        said = self.finish()
        assert self.code != 0, said
        return said

    def await_that(self, condition):
        """Wait for something that happens while it runs; return what `condition` then does."""

        def is_met():
            ended = self.code is not None
            met = condition()
            assert met or not ended, f"Snakemake ended early:\n{self.said()}"
            return met

        return wait_for(is_met, self.said)


class Toy:
    """A folder with a workflow, whose Snakemake talks to the cluster.

    When the body of a `with` ends, so does every Snakemake that was started, and every job of the
    cluster.
    """

    def __init__(self, folder, cluster=None):
        self.folder, self.cluster = folder, cluster
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = cluster.environment() if cluster else dict(os.environ)
        self._drivers = []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for driver in self._drivers:
            driver.kill()
        if self.cluster:
            self.cluster.cancel_all()

    def write(self, text):
        (self.folder / "Snakefile").write_text(text)

    def arguments(self, *arguments, **settings):
        given = {"status_interval": 1, **settings}
        options = [
            word for name, value in given.items()
            for word in (f"--submitit-{name.replace('_', '-')}", str(value))
        ]  # fmt: skip
        return ["--executor", "submitit", "--jobs", "50", "--nolock", "--rerun-incomplete",
                "--rerun-triggers", "input", "params", *options, *arguments]  # fmt: skip

    def start(self, *arguments, **settings):
        """Start Snakemake."""
        with self._output() as file:
            process = launch(
                "snakemake", *self.arguments(*arguments, **settings), cwd=self.folder,
                env=self.environment, stdout=file, stderr=file,
            )  # fmt: skip
        return self._driver(process, file.name)

    def start_process(self, *arguments, ignored=(), **settings):
        """Start Snakemake as a new process that has inherited to ignore these signals."""

        def ignore():
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)

        command = [sys.executable, "-m", "snakemake", *self.arguments(*arguments, **settings)]
        with self._output() as file:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=file, stderr=file,
                start_new_session=True, preexec_fn=ignore,
            )  # fmt: skip
        return self._driver(process, file.name)

    def _output(self):
        return (self.folder / f"driver-{len(self._drivers)}.log").open("wb")

    def _driver(self, process, output):
        self._drivers.append(Driver(process, Path(output)))
        return self._drivers[-1]

    def succeed(self, *arguments, **settings):
        """Run Snakemake to its end, and return what it printed."""
        return self.start(*arguments, **settings).succeed()

    def fail(self, *arguments, **settings):
        """Run Snakemake, which has to fail; return the line with which it says why."""
        return message(self.start(*arguments, **settings).fail())

    # --- what happens on the cluster --------------------------------------------------------------

    def starts(self, name="train"):
        """Return (first step, job number) of every start of the trainer."""
        path = self.folder / f"{name}.state.starts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(line.split()[0]), line.split()[1]) for line in lines]

    def await_starts(self, count, driver, name="train"):
        """Wait until the trainer has been started `count` times; return its job's number.

        From then on it heeds signals.
        """
        return driver.await_that(lambda: self.starts(name)[count - 1 :])[-1][1]

    def await_training(self, count, driver, name="train"):
        """Wait until the trainer has been started `count` times, and has saved a further step."""
        self.await_starts(count, driver, name)
        return driver.await_that(
            lambda: self.saved(name) > (last := self.starts(name)[-1])[0] and last[1]
        )

    def saved(self, name="train"):
        """Return the step that the trainer has saved last."""
        with suppress(FileNotFoundError):
            return int((self.folder / f"{name}.state").read_text())
        return 0

    def let_finish(self, name="train"):
        """Let a trainer that trains until it is told to finish, at its next step."""
        (self.folder / f"{name}.state.finish").touch()

    def records(self):
        folder = self.folder / ".snakemake" / "submitit" / "jobs"
        found = []
        for path in folder.glob("*.json"):
            with suppress(FileNotFoundError):  # that job has ended meanwhile
                found.append(json.loads(path.read_text()))
        return found

    def jobs(self):
        """Return number and state of each job of this workflow that SLURM knows."""
        listed = self.cluster.run(
            "squeue", "--noheader", "--states=all", "--format=%A %T %Z"
        ).stdout
        return {
            words[0]: words[1] for words in map(str.split, listed.splitlines())
            if words[2] == str(self.folder)
        }  # fmt: skip

    def ended(self):
        """Wait until SLURM is done with all of these jobs, and return how each ended.

        It may still be busy with one whose result Snakemake has seen.
        """
        busy = {"PENDING", "RUNNING", "COMPLETING"}
        wait_for(lambda: not busy & set(self.jobs().values()), lambda: str(self.jobs()), every=0.1)
        return self.jobs()

    def await_state(self, job, state):
        """Wait until SLURM gives a job this state."""
        wait_for(lambda: self.jobs().get(job) == state, lambda: str(self.jobs()), every=0.1)

    def kill_batch(self, job):
        """Kill what SLURM sees as a job's batch script, as nothing can prepare for."""
        (process,) = [
            each for each in psutil.process_iter(["cmdline", "cwd", "environ"])
            if "submitit.core._submit" in (each.info["cmdline"] or [])
            and each.info["cwd"] == str(self.folder)
            and (each.info["environ"] or {}).get("SLURM_JOB_ID") == job
        ]  # fmt: skip
        process.kill()

    def job_log(self, job):
        """Return what the node wrote of a job: all its attempts, one after the other."""
        return (self.folder / ".snakemake" / "submitit" / f"{job}_0_log.out").read_text()


def message(said):
    """Return the line of the driver that says why the one job that failed did."""
    (line,) = messages(said).values()
    return line


def messages(said):
    """Return the lines of the driver that say why jobs failed, by the names of their rules."""
    found = re.findall(r"^Error in rule (\w+):\n    message: (?!None)(.*)$", said, flags=re.M)
    assert found, said
    return dict(found)
