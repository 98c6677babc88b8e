"""Small workflows that run through the submitit executor, on a real cluster."""

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
"""Starts Snakemake in a new process. A test suite may replace it by a faster way."""


def training_rule(*, steps="endless", mode="", name="train", params="", launcher="", **resources):
    """Return a rule that runs the toy trainer, by default until `Toy.let_finish`."""
    resources = {"mem_mb": 300, "runtime": 10, "resumable": True, **resources}
    lines = "".join(f"        {key}={value!r},\n" for key, value in resources.items())
    return (
        f"rule {name}:\n"
        f"    output: '{name}.txt'\n"
        f"    log: 'logs/{name}.log'\n"
        + (f"    params: {params}\n" if params else "")
        + f"    resources:\n{lines}"
        f"    shell: '{launcher} {sys.executable} {TRAINER} {name}.state {steps} {mode} 2>&1'\n"
        "           ' | (trap \"\" TERM; exec tee -a {log}) && touch {output}'\n"
    )


def rule(command, name="r", **resources):
    """Return a rule with a shell command and the output `name`.txt."""
    resources = {"mem_mb": 300, "runtime": 5, **resources}
    lines = "".join(f"        {key}={value!r},\n" for key, value in resources.items())
    return (
        f"rule {name}:\n    output: '{name}.txt'\n    resources:\n{lines}    shell: {command!r}\n"
    )


def save_and_stop(cluster, job):
    """Send the signal that SLURM sends before the time limit."""
    cluster.run("scancel", "--batch", "--signal=USR2", job)


class Driver:
    """A Snakemake process and its output.

    On another host, `process` waits outside for the one there, which gets the signals.
    """

    def __init__(self, process, log, *, on_host=False):
        self.process, self._log, self._on_host = process, log, on_host

    @property
    def code(self):
        """Its exit code, or None while it runs."""
        return self.process.poll()

    def output(self):
        """Return all that it has printed."""
        return self._log.read_text()

    def send_signal(self, number):
        if not self._on_host:
            self.process.send_signal(number)
        elif self.code is None:
            for child in psutil.Process(self.process.pid).children():
                child.send_signal(number)

    def kill(self):
        """Kill it with SIGKILL, and wait until it has ended."""
        self.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def finish(self):
        """Wait until it has ended; return its output."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"Snakemake did not end in {PATIENCE:.0f} s:\n{self.output()}")
        return self.output()

    def succeed(self):
        output = self.finish()
        assert self.code == 0, output
        return output

    def fail(self):
        """Wait until it has failed; return its output."""
        output = self.finish()
        assert self.code != 0, output
        return output

    def await_that(self, condition):
        """Wait until `condition()` is true while Snakemake runs, and return its result."""

        def is_met():
            has_ended = self.code is not None
            result = condition()
            assert result or not has_ended, f"Snakemake ended early:\n{self.output()}"
            return result

        return wait_for(is_met, self.output)


class Toy:
    """A folder with a toy workflow, on the cluster or in local processes.

    As a context manager, it ends all its Snakemakes and all jobs of the cluster.
    """

    def __init__(self, folder, cluster=None):
        self.folder, self.cluster = folder, cluster
        self.host = ""
        """Host of a cluster of several on which Snakemake runs."""
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
        settings = {"status_interval": 1, **settings}
        options = [
            option for name, value in settings.items()
            for option in (f"--submitit-{name.replace('_', '-')}", str(value))
        ]  # fmt: skip
        return ["--executor", "submitit", "--jobs", "50", "--nolock", "--rerun-incomplete",
                "--rerun-triggers", "input", "params", *options, *arguments]  # fmt: skip

    def start(self, *arguments, **settings):
        """Start Snakemake, on the host `self.host` if that is set."""
        options = self.arguments(*arguments, **settings)
        with self._output() as file:
            streams = {"env": self.environment, "stdout": file, "stderr": file}
            if self.host:
                command = (sys.executable, "-m", "snakemake", *options)
                host = self.cluster[self.host]
                process = host.start(*command, folder=self.folder, **streams)
            else:
                process = launch("snakemake", *options, cwd=self.folder, **streams)
        return self._driver(process, file.name)

    def start_process(self, *arguments, ignored=(), **settings):
        """Start Snakemake as a new process that inherits these signals as ignored."""

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

    def _driver(self, process, log):
        self._drivers.append(Driver(process, Path(log), on_host=bool(self.host)))
        return self._drivers[-1]

    def succeed(self, *arguments, **settings):
        """Run Snakemake, which has to succeed; return its output."""
        return self.start(*arguments, **settings).succeed()

    def fail(self, *arguments, **settings):
        """Run Snakemake, which has to fail; return the message of the failed job."""
        return message(self.start(*arguments, **settings).fail())

    # --- jobs -------------------------------------------------------------------------------------

    def starts(self, name="train"):
        """Return (first step, job id) of every start of the trainer."""
        path = self.folder / f"{name}.state.starts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(line.split()[0]), line.split()[1]) for line in lines]

    def await_starts(self, count, driver, name="train"):
        """Wait until the trainer was started `count` times; return its job id.

        Its signal handlers are installed then.
        """
        return driver.await_that(lambda: self.starts(name)[count - 1 :])[-1][1]

    def await_training(self, count, driver, name="train"):
        """Wait until the trainer was started `count` times and has saved a further step."""
        self.await_starts(count, driver, name)
        return driver.await_that(
            lambda: self.saved(name) > (last := self.starts(name)[-1])[0] and last[1]
        )

    def saved(self, name="train"):
        """Return the last step that the trainer has saved."""
        with suppress(FileNotFoundError):
            return int((self.folder / f"{name}.state").read_text())
        return 0

    def let_finish(self, name="train"):
        """Let an endless training finish at its next step."""
        (self.folder / f"{name}.state.finish").touch()

    def records(self):
        """Return the plugin's records of jobs that have not ended."""
        folder = self.folder / ".snakemake" / "submitit" / "jobs"
        records = []
        for path in folder.glob("*.json"):
            with suppress(FileNotFoundError):  # that job has ended meanwhile
                records.append(json.loads(path.read_text()))
        return records

    def jobs(self):
        """Return the states of this workflow's jobs in SLURM by job id."""
        output = self.cluster.run(
            "squeue", "--noheader", "--states=all", "--format=%A %T %Z"
        ).stdout
        return {
            words[0]: words[1] for words in map(str.split, output.splitlines())
            if words[2] == str(self.folder)
        }  # fmt: skip

    def final_states(self):
        """Wait until all jobs have ended in SLURM, and return their states by job id.

        A job may still be completing when Snakemake has read its result.
        """
        active = {"PENDING", "RUNNING", "COMPLETING"}
        wait_for(
            lambda: not active & set(self.jobs().values()), lambda: str(self.jobs()), every=0.1
        )
        return self.jobs()

    def await_state(self, job, state):
        """Wait until a job has this state in SLURM."""
        wait_for(lambda: self.jobs().get(job) == state, lambda: str(self.jobs()), every=0.1)

    def kill_batch(self, job):
        """Kill a job's batch script and all that it has started with SIGKILL.

        Without control groups SLURM leaves what has lost its parents to itself for a while, and a
        trainer would go on beside the next attempt.
        """
        (process,) = [
            process for process in psutil.process_iter(["cmdline", "cwd", "environ"])
            if "submitit.core._submit" in (process.info["cmdline"] or [])
            and process.info["cwd"] == str(self.folder)
            and (process.info["environ"] or {}).get("SLURM_JOB_ID") == job
        ]  # fmt: skip
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # it has ended with its parent
                each.kill()

    def job_log(self, job):
        """Return a job's log, which has all its attempts."""
        return (self.folder / ".snakemake" / "submitit" / f"{job}_0_log.out").read_text()


def message(output):
    """Return Snakemake's message about the only job that failed."""
    (line,) = messages(output).values()
    return line


def messages(output):
    """Return Snakemake's messages about failed jobs by the names of their rules."""
    errors = re.findall(r"^Error in rule (\w+):\n    message: (?!None)(.*)$", output, flags=re.M)
    assert errors, output
    return dict(errors)
