"""The DAG on a SLURM, with trainings preempted and the driver killed meanwhile.

Trainings are paused at a step for these events. Their outputs are compared with those of the same
project on this machine.
"""

import csv
import json
import re
import shutil

import pytest

from testbed.waiting import wait_for
from tests.helpers import forkserver
from tests.helpers.finished_project import (
    ABLATION,
    CHILD,
    CLASSIFIERS,
    DOWNSTREAM,
    PARENT,
    RESULTS,
    RUNS,
    T,
    shrink,
    work_dir,
)
from tests.helpers.hold import HOLD_STEP, Holds
from tests.helpers.versioned import SCALE, Versioned


class PausableProject(Versioned):
    """A project on SLURM whose trainings can be held at a step."""

    def __init__(self, folder, experiments, cluster):
        super().__init__(folder)
        shrink(folder / "params", experiments)
        self.cluster = cluster
        self.holds = Holds(folder.parent / "holds")

    def environment(self, **more):
        return super().environment(
            **{
                **self.cluster.environment(), "SMT_SCALE": SCALE,
                **self.holds.environment(), **more,
            }
        )  # fmt: skip

    def drive(self, *targets):
        """Start the driver; what it prints goes to a new log."""
        self.log = self.folder.parent / f"driver{len([*self.folder.parent.glob('*.log')])}.log"
        with self.log.open("wb") as log:
            return forkserver.start(
                "snakemake", "--profile", "slurm", *targets, "--config", f"scale={SCALE}",
                cwd=self.folder, env=self.environment(), stdout=log, stderr=log,
            )  # fmt: skip

    # --- trainings --------------------------------------------------------------------------------

    def await_held(self, driver, *experiments):
        self._await(lambda: all(map(self.holds.is_held, experiments)), driver)

    def preempt(self, driver):
        """Let another job take all nodes from the trainings; return when they are requeued."""
        jobs = [job for job, comment in self._running() if comment.startswith(f"smt {SCALE} ")]
        self.cluster.run(
            "sbatch", "--partition=high", "--nodes=2", "--exclusive", "--time=5", "--mem=100",
            "--output=/dev/null", "--wrap=true",
        )  # fmt: skip
        self._await(lambda: all(self._requeues(job) for job in jobs), driver)
        return jobs

    def _await(self, condition, driver):
        def is_met():
            assert driver.poll() is None, self.errors()
            return condition()

        wait_for(is_met, self.errors, every=0.2)

    def errors(self):
        """Return the errors in the driver's log and in the trainings' failure records."""
        lines = [
            line
            for line in self.log.read_text().splitlines()
            if re.search("submitit:|smt:|[Ee]rror", line)
        ]
        causes = (self.folder / RESULTS / "runs").glob("*/seed*/work-*/failure.json")
        return "\n".join([*lines[-60:], *(f"{path}: {path.read_text()}" for path in causes)])

    # --- SLURM ------------------------------------------------------------------------------------

    def _running(self):
        form = ("--noheader", "--format=%A %k", "--states=running")
        lines = self.cluster.run("squeue", *form).stdout.splitlines()
        return [line.split(maxsplit=1) for line in lines]

    def _requeues(self, job):
        description = self.cluster.run("scontrol", "show", "job", job).stdout
        return int(re.search(r"Restarts=(\d+)", description)[1])

    def submitted(self):
        """Return the name of each job of this project that SLURM has been given, by number."""
        listing = self.cluster.run(
            "sacct", "--noheader", "--parsable2", "--allocations", "--starttime=now-2hours",
            "--format=JobID,JobName,WorkDir",
        )  # fmt: skip
        rows = [line.split("|") for line in listing.stdout.splitlines()]
        return {job: name for job, name, folder in rows if folder == str(self.folder)}


def preempt_and_restart(project, targets, first, later):
    """Make targets on SLURM; return the jobs before the driver was killed, and after all of it.

    Experiments `first` are preempted together; the driver is killed while `later` trains.
    """
    project.holds.hold(*first, later)
    driver = project.drive(*targets)
    project.await_held(driver, *first)
    assert len(project.preempt(driver)) >= len(first)
    project.holds.let_go(*first)
    project.await_held(driver, later)
    driver.kill()
    driver.wait()
    before = project.submitted()
    project.holds.let_go(later)
    driver = project.drive(*targets)
    assert driver.wait(600) == 0, project.errors()
    return before, project.submitted()


def assert_jobs_adopted(project, before, after):
    """Assert that the second driver adopted the jobs of the first and submitted none twice."""
    assert "reattached, from an earlier run of Snakemake" in project.log.read_text()
    names = list(after.values())
    assert len(names) == len(set(names)), sorted(names)
    assert set(before) <= set(after)


def assert_nothing_to_do(project, targets):
    driver = project.drive(*targets)
    assert driver.wait(600) == 0 and "Nothing to be done" in project.log.read_text()
    names = [path.name for path in (project.folder / ".snakemake/submitit").rglob("*")]
    assert sorted(names) == ["driver", "jobs"]


def files_of_runs(project, name):
    runs = project.folder / RESULTS / "runs"
    return {path.relative_to(runs): path for path in runs.glob(f"*/seed*/{name}")}


@pytest.mark.slow
def test_preempted_runs_and_a_restarted_driver_give_undisturbed_weights(
    finished, cluster, tmp_path
):
    # The first experiment is the base of the second in params.
    project = PausableProject(tmp_path / "project", (T, ABLATION, CHILD), cluster)
    (project.folder / "data").symlink_to(finished.folder / "data")
    shutil.copytree(finished.folder / RESULTS / "data", project.folder / RESULTS / "data")
    names = (PARENT, ABLATION, CHILD)
    targets = [f"{RESULTS}/runs/{name}/seed0/metrics.json" for name in names]
    before, after = preempt_and_restart(project, targets, (PARENT, ABLATION), CHILD)
    assert_jobs_adopted(project, before, after)
    assert_nothing_to_do(project, targets)
    weights = files_of_runs(project, "model.safetensors")
    assert len(weights) == len(names)
    expected = files_of_runs(finished, "model.safetensors")
    for name, path in weights.items():
        assert path.read_bytes() == expected[name].read_bytes(), name
    for name in (PARENT, ABLATION):
        record = json.loads((work_dir(project, name) / "provenance.json").read_text())
        assert record["attempts"][-1]["resumed_at_step"] >= HOLD_STEP, name


@pytest.mark.slow
def test_every_output_is_the_same_on_a_cluster(finished, cluster, tmp_path):
    """Runs of every kind, tables and pictures, from nothing."""
    project = PausableProject(tmp_path / "project", (*CLASSIFIERS, *DOWNSTREAM), cluster)
    before, after = preempt_and_restart(project, ("all",), (PARENT, ABLATION), CHILD)
    assert_jobs_adopted(project, before, after)
    assert_nothing_to_do(project, ("all",))
    for name, count in (("model.safetensors", len(RUNS)), ("samples.jpg", len(DOWNSTREAM))):
        ours, theirs = (files_of_runs(copy, name) for copy in (project, finished))
        assert len(ours) == count and ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key].read_bytes() == theirs[key].read_bytes(), key
    ours, theirs = (copy.folder / RESULTS / "tables" for copy in (project, finished))
    tables = sorted(path.name for path in theirs.glob("*.csv"))
    assert tables == sorted(path.name for path in ours.glob("*.csv"))
    for table in tables:
        assert numbers(ours / table) == numbers(theirs / table), table


def numbers(table):
    """Return the rows of a table but for the names of MLflow's runs, which differ."""
    with table.open() as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [{key: row[key] for key in row if key != "run_ids"} for row in rows]
