"""DVC and Snakemake agree: recorded after a run, remade after a change, brought back in a clone."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from smt.layout import Layout
from smt.params import load_project
from smt.spec import Run
from smt.versioning import stages
from smt.versioning.record import keep
from tests.helpers import ROOT
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.run_files import RunFiles
from tests.helpers.versioned import (
    CHILD,
    HEADS,
    KEPT,
    LARGE,
    TINY,
    Versioned,
    copied,
    cut_down,
    run_folder,
)  # fmt: skip

pytestmark = pytest.mark.xdist_group("versioned")  # where the recorded project is


@pytest.fixture
def project(recorded, tmp_path):
    """A copy of it, with everything."""
    return copied(recorded, tmp_path / "project")


@pytest.fixture
def clone(recorded, tmp_path):
    """A fresh clone of it, with the remote where the repository says and nothing pulled."""
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(recorded.folder), str(folder)], check=True)
    shutil.copytree(recorded.folder / "dvc-remote", folder / "dvc-remote")
    other = object.__new__(Versioned)
    other.folder = folder
    return other


def trained(done):
    """Experiments and seeds that Snakemake has trained."""
    found = re.findall(r"Train (\w+), seed (\d+)", done.stdout + done.stderr)
    return {(name, int(seed)) for name, seed in found}


def test_the_stages_in_the_repository_are_those_of_the_params():
    known = load_project(ROOT / "params", "demo")
    assert (ROOT / "dvc.yaml").read_text() == stages.text(known, Layout("demo"))


def test_a_detectors_stage_has_its_picture_as_well_and_a_classifiers_has_none():
    known = load_project(ROOT / "params", "demo")
    found = yaml.safe_load(stages.text(known, Layout("demo")))["stages"]
    own, others = found["downstream"], found["run"]
    heads = {str(run) for run in known.runs if known.experiments[run.experiment].head is not None}
    assert set(own["foreach"]) == heads and len(heads) == 11
    assert set(others["foreach"]) == {str(run) for run in known.runs} - heads
    picture = "results/demo/runs/${item.experiment}/seed${item.seed}/samples.jpg"
    assert own["do"]["outs"] == [*others["do"]["outs"], {picture: {"persist": True}}]
    shown = {key: value for key, value in own["do"].items() if key != "outs"}
    assert shown == {key: value for key, value in others["do"].items() if key != "outs"}


def test_after_recording_neither_has_anything_to_do(project):
    before = {path: path.stat().st_mtime_ns for path in run_folder(project).glob("m*")}
    assert project.is_left_alone()
    assert {path: path.stat().st_mtime_ns for path in run_folder(project).glob("m*")} == before
    assert project.record().startswith("recorded: 5 runs, all")  # and again
    assert project.is_left_alone()
    kept = {path.name for path in (run_folder(project) / "record").iterdir()}
    assert kept == {"journal.jsonl", "times.jsonl", "provenance.json", "train.log", "curves.csv"}
    listed = project.dvc("list", ".", "results", "--recursive", "--dvc-only").stdout
    assert "checkpoint" not in listed


def test_a_changed_recipe_remakes_its_runs_and_no_others(project):
    project.set_rate("imagenet22k_to_1k_224", 3e-4)
    changed = project.status()
    assert set(changed) == {"data", "dag"}  # that hold params/scales.yaml
    plan = project.plan("all")
    assert set(plan.trainings) == {(CHILD, 0)}
    weights = run_folder(project).joinpath("model.safetensors").read_bytes()
    done = project.dvc("repro")
    assert trained(done) == {(CHILD, 0)}
    ran = set(re.findall(r"Running stage '(.+?)'", done.stdout))
    assert ran == {"data", "dag", f"run@{CHILD}-seed0", "tables"}
    assert project.is_left_alone()
    assert run_folder(project).joinpath("model.safetensors").read_bytes() == weights
    told = json.loads(project.dvc("params", "diff", "--json").stdout)
    ((key, value),) = told["params/scales.yaml"].items()
    assert key == "demo.recipes.imagenet22k_to_1k_224.optimizer.lr" and value["new"] == 3e-4
    metrics = json.loads(project.dvc("metrics", "diff", "--json").stdout)
    assert {Path(path).parent.parent.name for path in metrics} == {CHILD}
    (numbers,) = metrics.values()
    assert {"old", "new"} <= set(numbers["metrics.loss"])


def test_a_comment_remakes_nothing(project):
    path = project.folder / "params" / "recipes.yaml"
    path.write_text(f"# a remark\n{path.read_text()}")
    assert project.is_left_alone()


def test_a_pulled_clone_has_nothing_to_do_and_can_make_the_tables_again(clone, recorded):
    done = clone.smt("dvc", "restore")
    assert done.returncode == 0, done.stderr
    assert "restored: 5 runs" in done.stdout
    assert clone.is_left_alone()
    tables = clone.folder / "results" / "demo" / "tables"
    numbers = (tables / "imagenet1k.csv").read_text()
    shutil.rmtree(tables)
    for command in ("sync", "tables"):
        done = clone.smt(command)
        assert done.returncode == 0, done.stderr

    def columns(text):
        return [line.split(",")[:8] for line in text.splitlines()]

    assert columns((tables / "imagenet1k.csv").read_text()) == columns(numbers)
    theirs = recorded.folder / "results" / "demo" / "runs"
    for path in theirs.glob("*/seed*/work-*/journal.jsonl"):
        same = clone.folder / path.relative_to(recorded.folder)
        assert same.read_bytes() == path.read_bytes()


def test_one_run_can_be_had_alone(clone, recorded, tmp_path):
    done = clone.smt("dvc", "restore", LARGE)
    assert done.returncode == 0, done.stderr
    assert "restored: 1 runs" in done.stdout
    weights = run_folder(recorded, LARGE).joinpath("model.safetensors").read_bytes()
    assert run_folder(clone, LARGE).joinpath("model.safetensors").read_bytes() == weights
    assert not run_folder(clone).joinpath("model.safetensors").exists()
    assert (LARGE, 0) not in clone.plan("all").trainings
    path = run_folder(recorded).joinpath("model.safetensors").relative_to(recorded.folder)
    clone.dvc("get", str(recorded.folder), str(path), "--out", str(tmp_path / "one"))
    assert (tmp_path / "one").read_bytes() == (recorded.folder / path).read_bytes()
    clone.dvc("pull", f"run@{TINY}-seed1")
    assert run_folder(clone, TINY, 1).joinpath("metrics.json").exists()


def test_what_is_done_is_recorded_while_the_rest_is_missing(recorded, tmp_path):
    project = copied(recorded, tmp_path / "project")
    shutil.rmtree(run_folder(project, HEADS))
    assert "recorded: 4 runs, of 5; others not yet" in project.record()
    changed = set(project.status())
    assert f"run@{HEADS}-seed0" in changed
    assert not changed & {f"run@{TINY}-seed0", f"run@{TINY}-seed1", f"run@{CHILD}-seed0"}


def test_from_nothing(tmp_path):
    """`dvc repro` is enough: data, DAG, runs, tables."""
    project = Versioned(tmp_path / "project")
    cut_down(project)
    project.git("init", "-q")
    known = load_project(project.folder / "params", "demo")
    (project.folder / "dvc.yaml").write_text(stages.text(known, Layout("demo")))
    done = project.dvc("repro")
    assert len(trained(done)) == 5
    assert project.is_left_alone()


def committing(process):
    """Return DVC's process that takes files in, once there is one."""
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "commit" in child.cmdline():
                return child
    return None


@pytest.mark.parametrize("seconds", [0.3, 1, 1.7, 2.4])
def test_killed_while_recording_nothing_is_lost_and_the_next_one_goes_on(
    recorded, tmp_path, seconds
):
    project = copied(recorded, tmp_path / "project")
    shutil.rmtree(project.folder / ".dvc" / "cache", ignore_errors=True)
    (project.folder / "dvc.lock").unlink()
    before = run_folder(project).joinpath("model.safetensors").read_bytes()
    process = project.start(
        sys.executable, "-m", "smt", "dvc", "record", log=tmp_path / "log", PYTHONUNBUFFERED="1"
    )
    commit = None
    while commit is None:
        assert process.poll() is None, (tmp_path / "log").read_text()
        commit = committing(process)
    time.sleep(seconds)
    process.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        commit.kill()
    process.wait()
    assert run_folder(project).joinpath("model.safetensors").read_bytes() == before
    assert project.record().startswith("recorded: 5 runs, all")
    assert project.is_left_alone()


def is_whole(lock):
    try:
        content = yaml.load(lock.read_bytes(), yaml.CSafeLoader)
        return len(content["stages"]) == 8
    except (yaml.YAMLError, TypeError, KeyError):
        return False


def test_killed_while_dvc_writes_its_lock_file(recorded, tmp_path):
    project = copied(recorded, tmp_path / "project")
    lock, before = project.folder / "dvc.lock", (recorded.folder / "dvc.lock").read_bytes()
    assert is_whole(lock)
    process = project.start(sys.executable, "-m", "smt", "dvc", "record", log=tmp_path / "log")
    while True:
        assert process.poll() is None, "it was never seen with half of the file"
        if lock.stat().st_size < len(before):
            commit = committing(process)
            commit.suspend()
            if not is_whole(lock):
                break
            commit.resume()
    process.kill()
    commit.kill()
    process.wait()
    assert not is_whole(lock)
    assert project.record().startswith("recorded: 5 runs, all")
    assert lock.read_bytes() == before
    assert project.is_left_alone()


def test_half_a_lock_file_of_anothers_is_named_with_the_remedy(recorded, tmp_path):
    project = copied(recorded, tmp_path / "project")
    lock = project.folder / "dvc.lock"
    whole = lock.read_bytes()
    name = whole.rindex(b"\n    cmd:") + 1
    for half in (whole[:700], whole[:name], whole[: name + 10], b"stages: 5\n", b""):
        lock.write_bytes(half)
        done = project.smt("dvc", "record")
        assert done.returncode == 2 and "git checkout dvc.lock" in done.stderr, half
        assert lock.read_bytes() == half
    project.git("checkout", "dvc.lock")
    assert project.record().startswith("recorded: 5 runs, all")


def test_paths_that_a_killed_dvc_had_in_use_are_free(recorded, tmp_path):
    project = copied(recorded, tmp_path / "project")
    in_use, path = project.folder / ".dvc/tmp/rwlock", str(run_folder(project) / "metrics.json")
    in_use.parent.mkdir(parents=True, exist_ok=True)
    another = {"pid": os.getpid(), "cmd": "dvc commit"}  # its id is this process's now
    for content in ("", json.dumps({"write": {path: another}, "read": {}})):
        in_use.write_text(content)
        assert project.dvc("commit", "--force", f"run@{TINY}-seed0", check=False).returncode != 0
        assert project.record().startswith("recorded: 5 runs, all")

    command = [sys.executable, "-c", "import sys, time; print(flush=True); time.sleep(600)", "dvc"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        mine = {"pid": running.pid, "cmd": "dvc repro"}
        in_use.write_text(json.dumps({"write": {}, "read": {path: [another, mine]}}))
        done = project.smt("dvc", "record")
        running.kill()
    assert done.returncode == 2 and f"(PID {running.pid}): dvc repro" in done.stderr


def test_what_was_kept_of_a_run_comes_back_whole(tmp_path):
    files, run = RunFiles(tmp_path), Run(experiment=TINY, seed=0)
    work_dir = files.finish(run)
    (work_dir / "git-0123456789ab.diff").write_text("what was not committed")
    keep(files.layout, run)
    kept = {path.name: path.read_bytes() for path in work_dir.iterdir()}
    shutil.rmtree(work_dir)
    for _ in range(2):
        keep(files.layout, run)
        assert {path.name: path.read_bytes() for path in work_dir.iterdir()} == kept
    assert (files.layout.record(run) / "git-0123456789ab.diff").exists()


def test_results_elsewhere_are_refused_in_one_line(project, tmp_path):
    done = project.smt("dvc", "record", SMT_RESULTS=str(tmp_path / "elsewhere"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "SMT_RESULTS" in done.stderr
    bare = ProjectCopy(tmp_path / "bare")
    done = bare.smt("dvc", "restore")
    assert done.returncode == 2 and "no .dvc/config" in done.stderr
    done = project.smt("dvc", "restore", "imagenet1k_smt_tny")
    assert done.returncode == 2 and "did you mean imagenet1k_smt_tiny" in done.stderr


def test_plots_have_a_curve_of_each_run(project):
    shown = json.loads(project.dvc("plots", "show", "--json").stdout)
    text = json.dumps(shown)
    assert all(f"runs/{name}/seed0/record/curves.csv" in text for name in KEPT)
    assert os.path.getsize(run_folder(project) / "record" / "curves.csv") > 40
