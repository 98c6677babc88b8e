"""One run on its way through all states: every command has the same word for each."""

import csv
import json
import re
import time

import pytest

from smt.cluster import queue
from smt.cluster.queue import Job
from smt.cluster.slurm import SlurmUnavailable
from smt.config.experiments import Run
from smt.runs.state import State
from smt.tracking.sync import sync
from tests.helpers.in_process import smt
from tests.helpers.run_files import RunFiles, S, T
from tests.helpers.shrink import keep

RUN = Run(experiment=T, seed=0)
LEARNING_RATE = ("demo", "recipes", "imagenet1k", "optimizer", "lr")


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    files = RunFiles(tmp_path)
    keep(files.params, (T, S))
    files.__dict__.pop("project", None)
    return files


def command(files, *arguments):
    done = smt(*files.arguments(*arguments, "--scale", "demo"))
    assert "Traceback" not in done.stderr, done.stderr
    return done


def of_status(files):
    (run,) = json.loads(command(files, "status", T, "--json").stdout)["runs"]
    return run["state"]


def of_tables(files):
    assert command(files, "tables", "imagenet1k").returncode == 0
    with (files.layout.tables / "imagenet1k.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["experiment"] == T]
    return row["states"]


def of_report(files):
    assert command(files, "report").returncode == 0
    text = re.sub(r"<[^>]*>", " ", files.layout.report.read_text())
    return re.search(rf"{RUN}\s+({'|'.join(State)})\s", text)[1]


def of_plan(files):
    return json.loads(command(files, "plan", "--json").stdout)["states"][str(RUN)]


def of_release(files):
    said = command(files, "release", T).stderr
    refused = re.search(rf"{RUN} is ({'|'.join(State)}) with the present params", said)
    # One that is done goes on to be verified, and these files have no weights.
    return refused[1] if refused else "done" if "nothing was released: " in said else said


def of_verify(files):
    said = command(files, "verify").stdout
    noted = re.search(rf"{RUN} is ({'|'.join(State)})$", said, re.M)
    if noted:
        return noted[1]
    return "outdated" if f"{RUN} is of other params or data" in said else "done"


def of_dvc(files):
    made = command(files, "dvc", "make", "run", T, "--seed", "0")
    refused = re.search(rf"{RUN} is ({'|'.join(State)}); run: dvc repro dag", made.stderr)
    return refused[1] if refused else "done" if made.returncode == 0 else made.stderr


COMMANDS = (of_status, of_tables, of_report, of_plan, of_release, of_verify, of_dvc)


def words(files):
    return {each.__name__: each(files) for each in COMMANDS}


def all_say(state):
    return {each.__name__: state for each in COMMANDS}


def job(files, state, nodes=""):
    said = queue.comment("demo", RUN, files.fingerprint(RUN))
    return Job("7", state, "Priority" if not nodes else "", nodes, time.time(), 0, said)


def test_all_commands_use_the_same_word_for_a_state(files, monkeypatch):
    """SLURM's answers are made up: what its queue really says is tested with `smt status`."""
    answers = []
    monkeypatch.setattr(queue, "jobs", lambda: tuple(answers))
    assert words(files) == all_say("not started")
    answers[:] = [job(files, "PENDING")]
    assert words(files) == all_say("queued")
    answers[:] = [job(files, "RUNNING", "n1")]
    files.run(RUN)
    assert words(files) == all_say("running")
    answers.clear()
    assert words(files) == all_say("stopped")
    files.fail(RUN, "loss is not finite")
    assert words(files) == all_say("failed")
    (files.work_dir(RUN) / "failure.json").unlink()
    files.finish(RUN)
    files.layout.weights(RUN).touch()
    sync(files.project, files.layout)
    assert words(files) == all_say("done")
    files.change("scales.yaml", 3e-3, *LEARNING_RATE)
    assert words(files) == all_say("outdated")


def test_without_slurm_the_files_decide(files, monkeypatch):
    def silent():
        raise SlurmUnavailable("squeue: not on this machine")

    monkeypatch.setattr(queue, "jobs", silent)
    files.run(RUN)
    assert words(files) == all_say("stopped")
