"""DVC and Snakemake agree: recorded after a run, remade after a change, brought back in a clone."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from smt.config.experiments import Run
from smt.config.load import load_project
from smt.runs.paths import Layout
from smt.runs.record import read_metrics
from smt.versioning import stages
from smt.versioning.record import keep
from testbed.waiting import wait_for
from tests.helpers import ROOT, forkserver
from tests.helpers.finished_project import (
    ABLATION,
    CHILD,
    PARENT,
    RESULTS,
    RUNS,
    SEGMENTER,
    SMALL,
    T,
    run_dir,
    shrink,
    work_dir,
)
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.run_files import RunFiles
from tests.helpers.versioned import SCALE, Versioned

ALL = f"recorded: {len(RUNS)} runs, all"
STAGES = len(RUNS) + len(("data", "dag", "tables"))


@pytest.fixture
def project(finished, tmp_path):
    """A copy of it, with everything."""
    project = finished.copied(tmp_path / "project")
    yield project
    shutil.rmtree(project.folder)


@pytest.fixture
def clone(finished, tmp_path):
    """A fresh clone of it, with the remote where the repository says and nothing pulled."""
    clone = finished.cloned(tmp_path / "clone")
    shutil.copytree(finished.folder / "dvc-remote", clone.folder / "dvc-remote")
    return clone


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
    before = {path: path.stat().st_mtime_ns for path in run_dir(project).glob("m*")}
    assert project.is_left_alone()
    assert {path: path.stat().st_mtime_ns for path in run_dir(project).glob("m*")} == before
    assert project.record().startswith(ALL)  # and again
    assert project.status() == {}
    kept = {path.name for path in (run_dir(project) / "record").iterdir()}
    (difference,) = work_dir(project).glob("git-*.diff")
    assert kept == {
        "journal.jsonl", "times.jsonl", "provenance.json", "train.log", "curves.csv",
        difference.name,
    }  # fmt: skip
    listed = project.dvc("list", ".", "results", "--recursive", "--dvc-only").stdout
    assert "checkpoint" not in listed


def test_a_changed_recipe_remakes_its_runs_and_no_others(project):
    project.set_rate("imagenet22k_to_1k_224", 3e-4)
    changed = project.status()
    assert set(changed) == {"data", "dag"}  # that hold params/scales.yaml
    plan = project.plan("all")
    assert set(plan.trainings) == {(CHILD, 0)}
    weights = run_dir(project).joinpath("model.safetensors").read_bytes()
    done = project.dvc("repro")
    assert trained(done) == {(CHILD, 0)}
    ran = set(re.findall(r"Running stage '(.+?)'", done.stdout))
    assert ran == {"data", "dag", f"run@{CHILD}-seed0", "tables"}
    assert project.is_left_alone()
    assert run_dir(project).joinpath("model.safetensors").read_bytes() == weights
    told = json.loads(project.dvc("params", "diff", "--json").stdout)
    ((key, value),) = told["params/scales.yaml"].items()
    assert key == f"{SCALE}.recipes.imagenet22k_to_1k_224.optimizer.lr" and value["new"] == 3e-4
    metrics = json.loads(project.dvc("metrics", "diff", "--json").stdout)
    assert {Path(path).parent.parent.name for path in metrics} == {CHILD}
    (numbers,) = metrics.values()
    assert {"old", "new"} <= set(numbers["metrics.loss"])


def test_a_comment_remakes_nothing(project):
    path = project.folder / "params" / "recipes.yaml"
    path.write_text(f"# a remark\n{path.read_text()}")
    assert project.is_left_alone()


def test_a_pulled_clone_has_nothing_to_do_and_can_make_the_tables_again(clone, finished):
    done = clone.smt("dvc", "restore")
    assert done.returncode == 0, done.stderr
    assert f"restored: {len(RUNS)} runs" in done.stdout
    assert clone.is_left_alone()
    tables = clone.folder / RESULTS / "tables"
    numbers = (tables / "imagenet1k.csv").read_text()
    shutil.rmtree(tables)
    for command in ("sync", "tables"):
        done = clone.smt(command)
        assert done.returncode == 0, done.stderr

    def columns(text):
        return [line.split(",")[:8] for line in text.splitlines()]

    assert columns((tables / "imagenet1k.csv").read_text()) == columns(numbers)
    theirs = finished.folder / RESULTS / "runs"
    for path in theirs.glob("*/seed*/work-*/journal.jsonl"):
        same = clone.folder / path.relative_to(finished.folder)
        assert same.read_bytes() == path.read_bytes()


def test_one_run_can_be_had_alone(clone, finished, tmp_path):
    done = clone.smt("dvc", "restore", PARENT)
    assert done.returncode == 0, done.stderr
    assert "restored: 1 runs" in done.stdout
    weights = run_dir(finished, PARENT).joinpath("model.safetensors").read_bytes()
    assert run_dir(clone, PARENT).joinpath("model.safetensors").read_bytes() == weights
    assert not run_dir(clone).joinpath("model.safetensors").exists()
    assert (PARENT, 0) not in clone.plan("all").trainings
    path = run_dir(finished).joinpath("model.safetensors").relative_to(finished.folder)
    clone.dvc("get", str(finished.folder), str(path), "--out", str(tmp_path / "one"))
    assert (tmp_path / "one").read_bytes() == (finished.folder / path).read_bytes()
    clone.dvc("pull", f"run@{T}-seed1")
    assert run_dir(clone, T, 1).joinpath("metrics.json").exists()


def test_what_is_done_is_recorded_while_the_rest_is_missing(project):
    shutil.rmtree(run_dir(project, ABLATION))
    left = len(RUNS) - 1
    assert f"recorded: {left} runs, of {len(RUNS)}; others: " in project.record()
    changed = set(project.status())
    assert f"run@{ABLATION}-seed0" in changed
    assert not changed & {f"run@{T}-seed0", f"run@{T}-seed1", f"run@{CHILD}-seed0"}


def test_from_nothing(tmp_path):
    """`dvc repro` is enough: data, DAG, runs, tables."""
    project = Versioned(tmp_path / "project")
    shrink(project.folder / "params", (CHILD, SEGMENTER))
    project.git("init", "-q")
    known = load_project(project.folder / "params", SCALE)
    (project.folder / "dvc.yaml").write_text(stages.text(known, Layout(SCALE)))
    done = project.dvc("repro")
    assert trained(done) == {(PARENT, 0), (CHILD, 0), (SMALL, 0), (SEGMENTER, 0)}
    assert project.is_left_alone()


# --- killed on the way ----------------------------------------------------------------------------


@pytest.fixture
def recording(project, tmp_path):
    """`smt dvc record` under way in the project."""
    env = forkserver.with_forked_commands(project.environment(PYTHONUNBUFFERED="1"))
    with (
        (tmp_path / "record.log").open("wb") as log,
        forkserver.start(
            "smt", "dvc", "record", cwd=project.folder, env=env, stdout=log, stderr=log
        ) as process,
    ):
        yield process


def processes(project):
    """Return all processes that run in the project's folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(project.folder):
                found.append(process)
    return found


def committing(project, recording):
    """Return DVC's process that takes files in, once there is one."""

    def is_dvc(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            ours = recording.pid in (process.pid, process.ppid())
            return not ours and forkserver.__name__ in process.cmdline()
        return False

    def forked():
        assert recording.poll() is None, "it has ended"
        return next(filter(is_dvc, processes(project)), None)

    return wait_for(forked, lambda: "DVC was not started", every=0.01)


def kill(project, recording, commit):
    recording.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        commit.kill()
    recording.wait()
    wait_for(lambda: not processes(project), lambda: f"left: {processes(project)}", every=0.01)


@pytest.fixture
def unrecorded(project):
    """The project with nothing in DVC."""
    shutil.rmtree(project.folder / ".dvc" / "cache")
    (project.folder / "dvc.lock").unlink()
    return project


@pytest.mark.parametrize("objects", [0, 1, 60, 120])
def test_killed_while_recording_nothing_is_lost_and_the_next_one_goes_on(
    unrecorded, recording, objects
):
    """DVC is killed at its start, or once this many files are in its cache."""
    project = unrecorded
    before = run_dir(project).joinpath("model.safetensors").read_bytes()
    commit = committing(project, recording)

    def are_in():
        assert recording.poll() is None, "it ended before"
        return len([*(project.folder / ".dvc/cache/files/md5").glob("*/*")]) >= objects

    wait_for(are_in, lambda: f"never {objects} files in the cache", every=0.005)
    kill(project, recording, commit)
    assert run_dir(project).joinpath("model.safetensors").read_bytes() == before
    assert project.record().startswith(ALL)
    assert project.status() == {}


def is_whole(lock):
    try:
        content = yaml.load(lock.read_bytes(), yaml.CSafeLoader)
        return len(content["stages"]) == STAGES
    except (yaml.YAMLError, TypeError, KeyError):
        return False


def test_killed_while_dvc_writes_its_lock_file(project, recording):
    lock = project.folder / "dvc.lock"
    before = lock.read_bytes()
    assert is_whole(lock)
    commit = committing(project, recording)

    def is_half_written():
        assert recording.poll() is None, "it was never seen with half of the file"
        if lock.stat().st_size < len(before):
            commit.suspend()
            if not is_whole(lock):
                return True
            commit.resume()
        return False

    wait_for(is_half_written, lambda: "the file is whole", every=0.001)
    kill(project, recording, commit)
    assert not is_whole(lock)
    assert project.record().startswith(ALL)
    assert lock.read_bytes() == before
    assert project.is_left_alone()


def test_half_a_lock_file_of_anothers_is_named_with_the_remedy(project):
    lock = project.folder / "dvc.lock"
    whole = lock.read_bytes()
    name = whole.rindex(b"\n    cmd:") + 1
    for half in (whole[:700], whole[:name], whole[: name + 10], b"stages: 5\n", b""):
        lock.write_bytes(half)
        done = project.smt("dvc", "record")
        assert done.returncode == 2 and "git checkout dvc.lock" in done.stderr, half
        assert lock.read_bytes() == half
    project.git("checkout", "dvc.lock")
    assert project.record().startswith(ALL)


def test_paths_that_a_killed_dvc_had_in_use_are_free(project):
    in_use, path = project.folder / ".dvc/tmp/rwlock", str(run_dir(project) / "metrics.json")
    in_use.parent.mkdir(parents=True, exist_ok=True)
    another = {"pid": os.getpid(), "cmd": "dvc commit"}  # its id is this process's now
    for content in ("", json.dumps({"write": {path: another}, "read": {}})):
        in_use.write_text(content)
        assert project.dvc("commit", "--force", f"run@{T}-seed0", check=False).returncode != 0
        assert project.record().startswith(ALL)

    command = [sys.executable, "-c", "import sys, time; print(flush=True); time.sleep(600)", "dvc"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        mine = {"pid": running.pid, "cmd": "dvc repro"}
        in_use.write_text(json.dumps({"write": {}, "read": {path: [another, mine]}}))
        done = project.smt("dvc", "record")
        running.kill()
    assert done.returncode == 2 and f"(PID {running.pid}): dvc repro" in done.stderr


def test_what_was_kept_of_a_run_comes_back_whole(tmp_path):
    files, run = RunFiles(tmp_path), Run(experiment=T, seed=0)
    work_dir = files.finish(run)
    final = read_metrics(files.layout, run)
    (work_dir / "git-0123456789ab.diff").write_text("what was not committed")
    keep(files.layout, run, final)
    kept = {path.name: path.read_bytes() for path in work_dir.iterdir()}
    shutil.rmtree(work_dir)
    for _ in range(2):
        keep(files.layout, run, final)
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
    assert all(f"runs/{name}/seed{seed}/record/curves.csv" in text for name, seed in RUNS)
    assert (run_dir(project) / "record" / "curves.csv").stat().st_size > 40
