"""A record that cannot be read is one line with file, fault and remedy; other runs are served."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from smt.config.experiments import Run
from smt.errors import EXIT_BAD_INPUT, EXIT_UNVERIFIED
from smt.runs.atomic import write_json
from smt.runs.record import read_metrics
from smt.tracking.sync import sync
from smt.versioning.operations import write_index
from tests.helpers.in_process import smt
from tests.helpers.run_files import RunFiles, S, T
from tests.helpers.shrink import keep

DAMAGED, OTHER = Run(experiment=T, seed=0), Run(experiment=S, seed=0)


def cut(content):
    return content[: len(content) // 2]


def edited(change):
    def damage(content):
        value = json.loads(content)
        change(value)
        return json.dumps(value)

    return damage


WRONG = {
    "metrics": ("metrics", 5), "evaluation": ("images", "many"), "provenance": ("attempts", {}),
    "failure": ("time", "noon"), "mlflow": ("runs", "none"), "index": ("seed", "0"),
    "sizes": ("params", 1.5), "proof": ("kills", "six"),
}  # fmt: skip
MISSING = {
    "metrics": "weights_sha256", "evaluation": "metrics", "provenance": "names",
    "failure": "message", "mlflow": "tracking_uri", "index": "fingerprint", "sizes": "macs",
    "proof": "weights_equal",
}  # fmt: skip
INSIDE = {"sizes": "smt_tiny"}
"""The mapping in a record that these keys are of, where it is not the record itself."""


def damages(name):
    """Return what is done to a record, and what is said of it."""
    key, value = WRONG[name]
    prefix = f"{INSIDE[name]}." if name in INSIDE else ""

    def part(it):
        return it[INSIDE[name]] if name in INSIDE else it

    return {
        "cut off": (cut, "is cut off ("),
        "empty": (lambda _: "", "is empty"),
        "text": (lambda _: "hello\n", "is no JSON ("),
        "binary": (lambda _: "\x00\udcff\x89", "is no JSON ("),
        "list": (lambda _: "[1, 2]", "holds no mapping of keys to values"),
        "wrong type": (
            edited(lambda it: part(it).update({key: value})), f"{prefix}{key}: should be a",
        ),
        "missing key": (
            edited(lambda it: part(it).pop(MISSING[name])), f"has no {prefix}{MISSING[name]}",
        ),
        "directory": (None, "cannot be read (is a directory)"),
    }  # fmt: skip


OF_RUNS = [name for name in WRONG if name not in ("index", "sizes", "proof")]
OF_EACH = ("cut off", "wrong type", "directory")
"""What `make test` does to every record. Only the metrics get all of it there."""
CASES = [
    pytest.param(
        name, how, marks=() if name == "metrics" or how in OF_EACH else pytest.mark.slow
    )
    for name in OF_RUNS
    for how in damages(name)
]  # fmt: skip
REMEDY = {
    "metrics": f"smt train {T} --seed 0 --scale demo",
    "evaluation": f"smt evaluate {T} --seed 0 --scale demo",
    "provenance": "smt train",
    "failure": "smt train",
    "mlflow": "smt sync --scale demo",
    "index": "smt dvc record --scale demo",
    "sizes": "smt profile --scale demo",
    "proof": f"smt prove {T} --seed 0 --ranks 1 --scale demo",
}


pytestmark = pytest.mark.xdist_group("records")  # what they share is made once


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Two runs that are done and in MLflow; nothing is changed in it."""
    files = RunFiles(tmp_path_factory.mktemp("records"))
    keep(files.params, (T, S))
    files.__dict__.pop("project", None)
    files.manifests()
    for run in (DAMAGED, OTHER):
        files.finish(run)
        files.layout.weights(run).touch()
    sync(files.project, files.layout)
    write_index(files.layout, {run: read_metrics(files.layout, run) for run in (DAMAGED, OTHER)})
    return files.folder


@pytest.fixture
def files(template, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")  # without SLURM
    shutil.copytree(template, tmp_path / "copy")
    return RunFiles(tmp_path / "copy")


def path_of(files, name) -> Path:
    if name == "mlflow":
        return files.layout.sync_receipt
    if name == "index":
        return files.layout.index_entry(DAMAGED)
    if name == "sizes":
        return files.layout.sizes
    if name == "proof":
        return files.layout.proof_record(DAMAGED, 1)
    if name in ("provenance", "failure"):
        return files.work_dir(DAMAGED) / f"{name}.json"
    return files.layout.run_dir(DAMAGED) / f"{name}.json"


def harm(files, name, how):
    """Damage a record; return the words that every command has to say of it."""
    path = path_of(files, name)
    if name == "failure":
        files.layout.metrics(DAMAGED).unlink()  # of a run that is done nobody asks
        files.fail(DAMAGED, "loss is not finite")
    change, words = damages(name)[how]
    if change is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(change(path.read_text()).encode(errors="surrogateescape"))
    return f"{path}: {words}"


def command(files, *arguments):
    done = smt(*files.arguments(*arguments, "--scale", "demo"))
    assert "Traceback" not in done.stderr, done.stderr
    return done


def one_line(done, words, remedy):
    """Assert that one line of what a command says names the damage and what to do."""
    lines = [line for line in (done.stdout + done.stderr).splitlines() if words in line]
    assert len(lines) == 1, done.stdout + done.stderr
    assert remedy in lines[0]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_a_damaged_record_is_one_line_in_every_command_and_other_runs_are_served(files, name, how):
    words, remedy = harm(files, name, how), REMEDY[name]
    if name != "mlflow":
        status = json.loads(command(files, "status", "--json").stdout)
        states = {each["run"]: each for each in status["runs"]}
        assert states[str(OTHER)]["state"] == "done"
        if name != "evaluation":
            own = states[str(DAMAGED)]
            # Of one that is done its numbers count, wherever they came from.
            assert own["state"] == ("done" if name == "provenance" else "failed")
            assert words in own["reason"] and remedy in own["reason"]
        sent = command(files, "sync", "--no-files")
        assert sent.returncode == EXIT_BAD_INPUT
        one_line(sent, words, remedy)
    if name in ("metrics", "provenance", "failure"):
        for arguments in (("tables", "imagenet1k"), ("figures", "accuracy_vs_macs"), ("report",)):
            done = command(files, *arguments)
            assert done.returncode == 0, done.stderr
            one_line(done, words, remedy)
        table = (files.layout.tables / "imagenet1k.md").read_text()
        assert "95.00" in table and ("failed" in table) is (name != "provenance")
        done = command(files, "plan")
        assert done.returncode == 0
        one_line(done, words, remedy)
    if name == "metrics":
        refused = command(files, "release", T)
        assert refused.returncode == EXIT_UNVERIFIED
        one_line(refused, words, remedy)
    if name in ("metrics", "provenance", "evaluation", "mlflow"):
        why = command(files, "why", "imagenet1k", T)
        assert why.returncode == EXIT_BAD_INPUT
        one_line(why, words, remedy)
    verified = command(files, "verify")
    assert verified.returncode == EXIT_UNVERIFIED
    one_line(verified, words, remedy)


@pytest.mark.parametrize("how", damages("sizes"))
def test_damaged_sizes_are_one_line_and_other_cells_are_served(files, how):
    files.write_sizes()
    words, remedy = harm(files, "sizes", how), REMEDY["sizes"]
    for arguments in (("tables",), ("figures", "accuracy_vs_macs"), ("report",)):
        done = command(files, *arguments)
        assert done.returncode == 0, done.stderr
        one_line(done, words, remedy)
    with (files.layout.tables / "sizes.csv").open() as file:
        rows = {(row["scale"], row["model"]): row for row in csv.DictReader(file)}
    assert rows["demo", "smt_tiny"]["state"].startswith(f"failed: {words}")
    assert rows["paper", "smt_tiny"]["params"] == "11506536"
    assert "95.00" in (files.layout.tables / "imagenet1k.md").read_text()
    verified = command(files, "verify")
    assert verified.returncode == EXIT_UNVERIFIED
    one_line(verified, words, remedy)


def proof_record(run):
    kill = {"kill": "SIGTERM", "signal": "SIGTERM", "saves": True, "ends": True, "workers": 0,
            "at_step": 3, "resumed_at": 3, "repeated": 0, "exit_codes": [75]}  # fmt: skip
    return {
        "experiment": run.experiment, "seed": 0, "scale": "demo", "ranks": 1,
        "fingerprint": "ab" * 32, "commit": None, "host": "node1", "steps": 9, "drawn_from": 0,
        "kills": [kill], "resumed_at": [3], "weights_sha256": ["cd" * 32] * 2,
        "weights_equal": True, "journal_equal": True, "first_difference": None,
        "steps_lost_when_told": 0, "most_steps_repeated": 0, "seconds": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize("how", damages("proof"))
def test_a_damaged_proof_is_one_line_and_other_rows_are_served(files, how):
    for run in (DAMAGED, OTHER):
        write_json(files.layout.proof_record(run, 1), proof_record(run))
    words, remedy = harm(files, "proof", how), REMEDY["proof"]
    done = command(files, "prove", "--tables", "only")
    assert done.returncode == 0, done.stderr
    one_line(done, words, remedy)
    with (files.layout.proof / "proof.csv").open() as file:
        assert [row["experiment"] for row in csv.DictReader(file)] == [S]
    text = (files.layout.proof / "proof.md").read_text()
    assert "1 of 1 ended with the same bytes" in text and "Not in this table: " in text
    files.layout.proof_record(OTHER, 1).unlink()
    alone = command(files, "prove", "--tables", "only")
    assert alone.returncode == EXIT_BAD_INPUT
    one_line(alone, words, remedy)


def test_a_damaged_record_is_one_line_of_training_and_evaluation(files):
    words = harm(files, "metrics", "cut off")
    for arguments in (("train", T, "--no-send"), ("evaluate", T)):
        done = files.smt(*arguments, "--scale", "demo", check=False)
        assert done.returncode == EXIT_BAD_INPUT
        one_line(done, words, REMEDY["metrics"])
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", damages("index"))
def test_recording_in_dvc_says_it_in_one_line_and_commits_nothing(files, monkeypatch, how):
    words = harm(files, "index", how)
    (files.folder / ".dvc").mkdir()
    (files.folder / ".dvc" / "config").touch()
    monkeypatch.chdir(files.folder)
    refused = command(files, "dvc", "record")
    assert refused.returncode == EXIT_BAD_INPUT and refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    one_line(refused, words, REMEDY["index"])
    assert not (files.folder / "dvc.lock").exists()
