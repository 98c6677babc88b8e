"""DVC and Snakemake agree: after recording, after a change of params, and in a restored clone."""

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
from smt.versioning.archive import archive_run
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
from tests.helpers.params import project_at
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.run_files import RunFiles
from tests.helpers.versioned import SCALE, Versioned

RECORDED_ALL = f"recorded: {len(RUNS)} runs, all"
STAGES = len(RUNS) + len(("data", "dag", "tables"))


@pytest.fixture
def project(finished, tmp_path):
    """A copy of the finished project, with everything."""
    project = finished.copied(tmp_path / "project")
    yield project
    shutil.rmtree(project.folder)


@pytest.fixture
def clone(finished, tmp_path):
    """A fresh clone of the finished project, with its DVC remote and nothing pulled."""
    clone = finished.cloned(tmp_path / "clone")
    shutil.copytree(finished.folder / "dvc-remote", clone.folder / "dvc-remote")
    return clone


def trained(done):
    """Return experiment and seed of each run that Snakemake has trained."""
    jobs = re.findall(r"Train (\w+), seed (\d+)", done.stdout + done.stderr)
    return {(name, int(seed)) for name, seed in jobs}


def test_the_stages_in_the_repository_are_those_of_the_params():
    demo = project_at("demo")
    assert (ROOT / "dvc.yaml").read_text() == stages.text(demo, Layout("demo"))


def test_only_the_stages_of_detectors_and_segmenters_have_sample_images():
    demo = project_at("demo")
    templates = yaml.safe_load(stages.text(demo, Layout("demo")))["stages"]
    downstream, classifiers = templates["downstream"], templates["run"]
    runs = {str(run) for run in demo.runs if demo.experiments[run.experiment].head is not None}
    assert set(downstream["foreach"]) == runs and len(runs) == 11
    assert set(classifiers["foreach"]) == {str(run) for run in demo.runs} - runs
    samples = "results/demo/runs/${item.experiment}/seed${item.seed}/samples.jpg"
    outputs = [*classifiers["do"].pop("outs"), {samples: {"persist": True}}]
    assert downstream["do"].pop("outs") == outputs
    assert downstream["do"] == classifiers["do"]


def test_after_recording_dvc_and_snakemake_have_nothing_to_do(project):
    before = {path: path.stat().st_mtime_ns for path in run_dir(project).glob("m*")}
    assert project.is_left_alone()
    assert {path: path.stat().st_mtime_ns for path in run_dir(project).glob("m*")} == before
    assert project.record().startswith(RECORDED_ALL)  # and again
    assert project.status() == {}
    (diff,) = work_dir(project).glob("git-*.diff")
    assert {path.name for path in (run_dir(project) / "record").iterdir()} == {
        "journal.jsonl", "times.jsonl", "provenance.json", "train.log", "curves.csv", diff.name,
    }  # fmt: skip
    tracked = project.dvc("list", ".", "results", "--recursive", "--dvc-only").stdout
    assert "checkpoint" not in tracked


def test_a_changed_recipe_trains_its_runs_again_and_no_others(project):
    project.set_rate("imagenet22k_to_1k_224", 3e-4)
    assert set(project.status()) == {"data", "dag"}  # their params are in params/scales.yaml
    plan = project.plan("all")
    assert set(plan.trainings) == {(CHILD, 0)}
    weights = run_dir(project).joinpath("model.safetensors").read_bytes()
    done = project.dvc("repro")
    assert trained(done) == {(CHILD, 0)}
    executed = set(re.findall(r"Running stage '(.+?)'", done.stdout))
    assert executed == {"data", "dag", f"run@{CHILD}-seed0", "tables"}
    assert project.is_left_alone()
    assert run_dir(project).joinpath("model.safetensors").read_bytes() == weights
    diff = json.loads(project.dvc("params", "diff", "--json").stdout)
    ((key, value),) = diff["params/scales.yaml"].items()
    assert key == f"{SCALE}.recipes.imagenet22k_to_1k_224.optimizer.lr" and value["new"] == 3e-4
    metrics = json.loads(project.dvc("metrics", "diff", "--json").stdout)
    assert {Path(path).parent.parent.name for path in metrics} == {CHILD}
    (numbers,) = metrics.values()
    assert {"old", "new"} <= set(numbers["metrics.loss"])


def test_a_comment_in_params_runs_nothing_again(project):
    path = project.folder / "params" / "recipes.yaml"
    path.write_text(f"# a remark\n{path.read_text()}")
    assert project.is_left_alone()


def test_a_restored_clone_has_nothing_to_do_and_can_make_the_tables_again(clone, finished):
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
    for path in (finished.folder / RESULTS / "runs").glob("*/seed*/work-*/journal.jsonl"):
        restored = clone.folder / path.relative_to(finished.folder)
        assert restored.read_bytes() == path.read_bytes()


def test_one_experiment_is_restored_alone(clone, finished, tmp_path):
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


def test_finished_runs_are_recorded_while_others_are_missing(project):
    shutil.rmtree(run_dir(project, ABLATION))
    expected = f"recorded: {len(RUNS) - 1} runs, of {len(RUNS)}; others: "
    assert expected in project.record()
    stages_to_run = set(project.status())
    assert f"run@{ABLATION}-seed0" in stages_to_run
    assert not stages_to_run & {f"run@{T}-seed0", f"run@{T}-seed1", f"run@{CHILD}-seed0"}


@pytest.mark.slow
def test_dvc_repro_makes_everything_in_a_fresh_checkout(tmp_path):
    project = Versioned(tmp_path / "project")
    shrink(project.folder / "params", (CHILD, SEGMENTER))
    project.git("init", "-q")
    pipeline = stages.text(load_project(project.folder / "params", SCALE), Layout(SCALE))
    (project.folder / "dvc.yaml").write_text(pipeline)
    done = project.dvc("repro")
    assert trained(done) == {(PARENT, 0), (CHILD, 0), (SMALL, 0), (SEGMENTER, 0)}
    assert project.is_left_alone()


# --- interrupted ----------------------------------------------------------------------------------


@pytest.fixture
def recording(project, tmp_path):
    """A running `smt dvc record` of the project."""
    env = forkserver.with_forked_commands(project.environment(PYTHONUNBUFFERED="1"))
    with (
        (tmp_path / "record.log").open("wb") as log,
        forkserver.start(
            "smt", "dvc", "record", cwd=project.folder, env=env, stdout=log, stderr=log
        ) as process,
    ):
        yield process


def processes(project):
    """Return all processes whose working directory is the project's folder."""
    in_folder = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(project.folder):
                in_folder.append(process)
    return in_folder


def commit_process(project, recording):
    """Return the process of `dvc commit`, once it runs."""

    def is_dvc(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            is_recording = recording.pid in (process.pid, process.ppid())
            return not is_recording and forkserver.__name__ in process.cmdline()
        return False

    def find():
        assert recording.poll() is None, "smt dvc record has ended"
        return next(filter(is_dvc, processes(project)), None)

    return wait_for(find, lambda: "dvc commit did not start", every=0.05)


def kill(project, recording, commit):
    recording.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        commit.kill()
    recording.wait()
    wait_for(
        lambda: not processes(project), lambda: f"still running: {processes(project)}", every=0.01
    )


@pytest.fixture
def unrecorded(project):
    """The project without lock file and DVC cache."""
    shutil.rmtree(project.folder / ".dvc" / "cache")
    (project.folder / "dvc.lock").unlink()
    return project


@pytest.mark.parametrize(
    "objects",
    [pytest.param(0, marks=pytest.mark.slow), 1, 60, pytest.param(120, marks=pytest.mark.slow)],
)
def test_killed_while_recording_nothing_is_lost_and_the_next_call_continues(
    unrecorded, recording, objects
):
    """DVC is killed at its start, or once `objects` files are in its cache."""
    project = unrecorded
    before = run_dir(project).joinpath("model.safetensors").read_bytes()
    commit = commit_process(project, recording)

    def has_objects():
        assert recording.poll() is None, f"it ended before {objects} files were in the cache"
        return len([*(project.folder / ".dvc/cache/files/md5").glob("*/*")]) >= objects

    wait_for(has_objects, lambda: f"never {objects} files in the cache", every=0.005)
    kill(project, recording, commit)
    assert run_dir(project).joinpath("model.safetensors").read_bytes() == before
    assert project.record().startswith(RECORDED_ALL)
    assert project.status() == {}


def is_complete(lock):
    try:
        content = yaml.load(lock.read_bytes(), yaml.CSafeLoader)
        return len(content["stages"]) == STAGES
    except (yaml.YAMLError, TypeError, KeyError):
        return False


def test_killed_while_dvc_writes_its_lock_file(project, recording):
    lock = project.folder / "dvc.lock"
    before = lock.read_bytes()
    assert is_complete(lock)
    commit = commit_process(project, recording)

    def is_truncated():
        assert recording.poll() is None, "it ended before dvc.lock was seen truncated"
        if lock.stat().st_size < len(before):
            commit.suspend()
            if not is_complete(lock):
                return True
            commit.resume()
        return False

    wait_for(is_truncated, lambda: "dvc.lock was never truncated", every=0.001)
    kill(project, recording, commit)
    assert not is_complete(lock)
    assert project.record().startswith(RECORDED_ALL)
    assert lock.read_bytes() == before
    assert project.is_left_alone()


def at_the_last_command(lock):
    return lock.rindex(b"\n    cmd:") + 1


DAMAGES = {
    "at a key": lambda lock: lock[: at_the_last_command(lock)],
    "within a key": lambda lock: lock[: at_the_last_command(lock) + 10],
    "at the beginning": lambda lock: lock[:700],
    "no stages": lambda _: b"stages: 5\n",
    "empty": lambda _: b"",
}


@pytest.mark.parametrize(
    "how",
    [pytest.param(how, marks=() if how == "at a key" else pytest.mark.slow) for how in DAMAGES],
)
def test_a_damaged_lock_file_without_a_backup_is_named_with_the_remedy(project, how):
    lock = project.folder / "dvc.lock"
    damaged = DAMAGES[how](lock.read_bytes())
    lock.write_bytes(damaged)
    done = project.smt("dvc", "record")
    assert done.returncode == 2 and "git checkout dvc.lock" in done.stderr
    assert lock.read_bytes() == damaged
    project.git("checkout", "dvc.lock")
    assert project.record().startswith(RECORDED_ALL)


def test_a_stale_rwlock_of_a_killed_dvc_is_removed(project):
    rwlock, path = project.folder / ".dvc/tmp/rwlock", str(run_dir(project) / "metrics.json")
    rwlock.parent.mkdir(parents=True, exist_ok=True)
    stale = {"pid": os.getpid(), "cmd": "dvc commit"}  # the id is now that of this process
    for content in ("", json.dumps({"write": {path: stale}, "read": {}})):
        rwlock.write_text(content)
        assert project.dvc("commit", "--force", f"run@{T}-seed0", check=False).returncode != 0
        assert project.record().startswith(RECORDED_ALL)

    command = [sys.executable, "-c", "import sys, time; print(flush=True); time.sleep(600)", "dvc"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        reader = {"pid": running.pid, "cmd": "dvc repro"}
        rwlock.write_text(json.dumps({"write": {}, "read": {path: [stale, reader]}}))
        done = project.smt("dvc", "record")
        running.kill()
    assert done.returncode == 2 and f"(PID {running.pid}): dvc repro" in done.stderr


def test_the_work_folder_of_an_archived_run_is_restored(tmp_path):
    files, run = RunFiles(tmp_path), Run(experiment=T, seed=0)
    work_dir = files.finish(run)
    metrics = read_metrics(files.layout, run)
    (work_dir / "git-0123456789ab.diff").write_text("a diff")
    archive_run(files.layout, run, metrics)
    content = {path.name: path.read_bytes() for path in work_dir.iterdir()}
    shutil.rmtree(work_dir)
    for _ in range(2):
        archive_run(files.layout, run, metrics)
        assert {path.name: path.read_bytes() for path in work_dir.iterdir()} == content
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
    text = project.dvc("plots", "show", "--json").stdout
    assert all(f"runs/{name}/seed{seed}/record/curves.csv" in text for name, seed in RUNS)
    assert (run_dir(project) / "record" / "curves.csv").stat().st_size > 40
