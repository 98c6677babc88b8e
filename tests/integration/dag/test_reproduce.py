"""The whole DAG for real, from nothing to tables: here, with a training that fails on the way, and
on a SLURM, with preemption and a killed driver on the way.

Models and budgets are cut down further than the demo's, and of detectors and segmenters three are
left, with few digits and scenes; code and DAG are the demo's.
"""

import csv
import json
import re
import subprocess
import sys

import pytest
import yaml

from smt.params import load_project
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.shrink import cut_down_digits, cut_down_scenes, keep
from tests.helpers.waiting import wait_for

pytestmark = pytest.mark.xdist_group("cluster")  # where the cluster is, results are compared

DOWNSTREAM = (
    "coco_mask_rcnn_1x_smt_small", "coco_retinanet_smt_small", "ade20k_upernet_smt_small",
)  # fmt: skip
RUNAWAY = 1e30
"""A learning rate at which the first step is the last."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project after `snakemake all` with one failing experiment, its mending, and `all` again."""
    project = ProjectCopy(tmp_path_factory.mktemp("reproduce") / "project")
    _shrink(project)
    _set_22k_rate(project, RUNAWAY)
    broken = project.snakemake("all")
    partial = project.smt("sync"), project.smt("tables")
    tables = {path.name: path.read_text() for path in _tables(project).iterdir()}
    _set_22k_rate(project, 2e-3)
    mended = project.snakemake("all")
    return project, broken, partial, tables, mended


def _edit_demo(project, change):
    path = project.folder / "params" / "scales.yaml"
    scales = yaml.safe_load(path.read_text())
    change(scales["demo"])
    path.write_text(yaml.safe_dump(scales, sort_keys=False))


def _shrink(project):
    params = project.folder / "params"
    experiments = load_project(params, "demo").experiments
    classifiers = [name for name, each in experiments.items() if each.head is None]
    keep(params, [*classifiers, *DOWNSTREAM])

    def change(demo):
        demo["models"]["smt_tiny"].update(widths=[8, 16, 32, 64], msa_heads=[1, 2, 4, 8])
        demo["models"]["smt_large"].update(widths=[8, 16, 32, 64], depths=[1, 1, 2, 1])
        for recipe in demo["recipes"].values():
            recipe.setdefault("schedule", {}).update(epochs=1, warmup_epochs=0)
        cut_down_digits(demo)
        _shrink_downstream(demo)

    _edit_demo(project, change)


def _shrink_downstream(demo):
    """Leave of each detector an epoch of a few steps on images of 64 pixels, and so on."""
    cut_down_scenes(demo)
    small = {"short": [64], "long": 64}
    size = {"resolution": 64, "resolution_long": 64}
    for recipe in demo["detection_recipes"].values():
        recipe.setdefault("schedule", {}).update(epochs=1, warmup_steps=2, milestones=[])
        recipe.setdefault("augment", {}).update(policies=[{"last": small}])
        recipe.update(size, evaluation={"rescale": small})
    recipe = demo["segmentation_recipes"]["upernet_160k"]
    recipe["schedule"].update(steps=8, interval=4, warmup_steps=2)
    recipe["augment"].update(rescale=small, crop=64)
    recipe["evaluation"].update(rescale=small, factors=[0.75, 1.0])
    recipe.update(size)
    for head in ("mask_rcnn", "retinanet", "upernet"):
        demo["heads"][head].update(channels=16)
    demo["heads"]["mask_rcnn"]["box"].update(width=32)
    demo["heads"]["mask_rcnn"]["mask"].update(convolutions=1)
    demo["heads"]["retinanet"].update(convolutions=1)


def _set_22k_rate(project, rate):
    _edit_demo(project, lambda demo: demo["recipes"]["imagenet22k"]["optimizer"].update(lr=rate))


def _tables(project):
    return project.folder / "results" / "demo" / "tables"


def test_a_failure_stops_only_what_starts_from_it(made):
    _, broken, _, _, _ = made
    assert broken.returncode != 0
    line = next(line for line in broken.stderr.splitlines() if line.startswith("smt: imagenet22k"))
    assert "failed: the loss is not finite" in line and "after 20 skipped steps" in line
    assert re.search(r"at step \d+ of 31, learning rate \d\.\d+e\+29", line)


def test_tables_of_a_partial_result_say_what_failed_and_what_is_pending(made):
    _, _, (sync, tables_command), tables, _ = made
    assert sync.returncode == 0 and tables_command.returncode == 0, tables_command.stderr
    assert "pending" in tables["imagenet22k.md"]
    assert "pending" not in tables["imagenet1k.md"]
    assert "demo scale: not comparable with the paper" in tables["imagenet1k.md"]


def test_after_mending_only_what_was_missing_is_trained(made):
    _, _, _, _, mended = made
    assert mended.returncode == 0, mended.stderr
    trained = set(re.findall(r"Train (\w+), seed", mended.stdout + mended.stderr))
    assert trained == {
        "imagenet22k_smt_large",
        "imagenet1k_smt_large_224",
        "imagenet1k_smt_large_384",
    }


def test_every_table_stands_in_every_format(made):
    project, _, _, _, _ = made
    names = ["imagenet1k", "imagenet22k", "ablation_components", "ablation_heads",
             "ablation_stacking", "ablation_aggregation", "coco_mask_rcnn", "coco_detectors",
             "ade20k", "sizes", "drift"]  # fmt: skip
    for name in names:
        for suffix in (".md", ".csv", ".tex", ".html"):
            assert (_tables(project) / f"{name}{suffix}").stat().st_size > 100, name + suffix
    assert not any("pending" in (_tables(project) / f"{n}.md").read_text() for n in names)


@pytest.mark.parametrize(
    ("table", "metric", "count"),
    [("imagenet1k", "top1", 3), ("coco_mask_rcnn", "mask_ap", 1), ("ade20k", "miou_ms", 1)],
)
def test_every_number_of_a_table_is_that_of_its_runs(made, table, metric, count):
    project, _, _, _, _ = made
    with (_tables(project) / f"{table}.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert len(rows) == count
    runs = project.folder / "results/demo/runs"
    for row in rows:
        said = [
            json.loads(path.read_text())
            for path in (runs / row["experiment"]).glob("seed*/metrics.json")
        ]
        mean = sum(each["metrics"][metric] for each in said) / len(said)
        assert float(row[f"{metric}_mean"]) == pytest.approx(mean, abs=1e-9)
        assert int(row["n"]) == len(said)
        assert all(each["fingerprint"][:12] in str(row) for each in said)


def test_run_again_there_is_nothing_to_do(made):
    project, _, _, _, _ = made
    again = project.snakemake("all")
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr


def test_tables_are_the_same_bytes_each_time(made):
    project, _, _, _, _ = made
    before = {path.name: path.read_bytes() for path in _tables(project).iterdir()}
    assert project.smt("tables").returncode == 0
    assert {path.name: path.read_bytes() for path in _tables(project).iterdir()} == before


def test_the_report_is_there_and_the_same_bytes_each_time(made):
    project, _, _, _, _ = made
    page = project.folder / "results/demo/report.html"
    before = page.read_text()
    assert "24 <small>of 24 done</small>" in before
    assert "Every run is done." in before
    assert 'href="tables/imagenet1k.csv"' in before
    assert before.count('src="data:image/jpeg;base64,') == len(DOWNSTREAM)
    assert project.smt("report").returncode == 0
    assert page.read_text() == before


def test_the_workflows_own_report_is_one_page_that_loads_nothing(made):
    project, _, _, _, _ = made
    done = project.snakemake("--report", "workflow.html", "all")
    assert done.returncode == 0, done.stderr
    page = (project.folder / "workflow.html").read_text()
    loaded = re.findall(
        r"""<(?:script|link|img)[^>]+(?:src|href)=["'](?!data:)([^"'#][^"']*)""", page
    )
    assert loaded == []
    assert "imagenet1k.html" in page


# --- the same on a cluster ------------------------------------------------------------------------

REHEARSAL = "snakemake --profile slurm all --config scale=demo"
ON_SLURM = (sys.executable, "-m", *REHEARSAL.split())


@pytest.fixture(scope="module")
def on_cluster(made, cluster, tmp_path_factory):
    """The project made on SLURM, with trainings preempted and the driver killed meanwhile."""
    project = ProjectCopy(tmp_path_factory.mktemp("cluster") / "project")
    _shrink(project)
    _set_22k_rate(project, 2e-3)
    log = project.folder / "driver.log"
    first = project.start(*ON_SLURM, log=log, **cluster.environment())
    _await(lambda: _begun(project) and _running(cluster), first, log)
    preempted = _running(cluster)
    cluster.run(
        "sbatch", "--partition=high", "--nodes=2", "--exclusive", "--time=5", "--mem=100",
        "--output=/dev/null", "--wrap=sleep 5",
    )  # fmt: skip
    _await(lambda: any(_requeues(cluster, job) for job in preempted), first, log)
    _await(lambda: _finished(project) and _running(cluster), first, log)
    first.kill()
    first.wait()
    submitted = _submitted(cluster, project)
    again = project.folder / "again.log"
    second = project.start(*ON_SLURM, log=again, **cluster.environment())
    assert second.wait(1200) == 0, _failures(project, again.read_text())
    return project, submitted, _submitted(cluster, project), again.read_text()


def _failures(project, said):
    """Return what of a driver's log, and of the logs of trainings, tells why jobs failed."""
    lines = [line for line in said.splitlines() if re.search("submitit:|smt:|[Ee]rror", line)]
    causes = (project.folder / "results/demo/runs").glob("*/seed*/work-*/failure.json")
    return "\n".join([*lines[-60:], *(f"{path}: {path.read_text()}" for path in causes)])


def _await(condition, process, log):
    def is_met():
        assert process.poll() is None, log.read_text()
        return condition()

    wait_for(is_met, log.read_text, every=0.5)


def _squeue(cluster, form, *arguments):
    listed = cluster.run("squeue", "--noheader", f"--format={form}", *arguments)
    return [line.split(maxsplit=1) for line in listed.stdout.splitlines()]


def _running(cluster):
    """Return the numbers of trainings that run."""
    rows = _squeue(cluster, "%A %k", "--states=running")
    return [job for job, comment in rows if comment.startswith("smt demo ")]


def _requeues(cluster, job):
    shown = cluster.run("scontrol", "show", "job", job).stdout
    return int(re.search(r"Restarts=(\d+)", shown)[1])


def _submitted(cluster, project):
    """Return the name of each job of a project that SLURM has been given, by number."""
    done = cluster.run(
        "sacct", "--noheader", "--parsable2", "--allocations", "--starttime=now-2hours",
        "--format=JobID,JobName,WorkDir",
    )  # fmt: skip
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {job: name for job, name, folder in rows if folder == str(project.folder)}


def _begun(project):
    return list((project.folder / "results/demo/runs").glob("*/seed*/work-*/journal.jsonl"))


def _finished(project):
    return list((project.folder / "results/demo/runs").glob("*/seed*/metrics.json"))


def _numbers(project, table):
    """Return the rows of a table but for the names of MLflow's runs, which differ."""
    with (_tables(project) / f"{table}.csv").open() as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [{key: row[key] for key in row if key != "run_ids"} for row in rows]


def test_on_a_cluster_the_tables_are_the_same(made, on_cluster):
    local, remote = made[0], on_cluster[0]
    names = sorted(path.stem for path in _tables(local).glob("*.csv"))
    assert names == sorted(path.stem for path in _tables(remote).glob("*.csv"))
    for name in names:
        assert _numbers(local, name) == _numbers(remote, name), name


def test_on_a_cluster_the_weights_are_the_same_bytes_though_trainings_were_preempted(
    made, on_cluster
):
    runs = made[0].folder / "results/demo/runs"
    weights = sorted(runs.glob("*/seed*/model.safetensors"))
    pictures = sorted(runs.glob("*/seed*/samples.jpg"))
    assert (len(weights), len(pictures)) == (24, 3)
    for path in (*weights, *pictures):
        other = on_cluster[0].folder / path.relative_to(made[0].folder)
        assert other.read_bytes() == path.read_bytes(), path


def test_a_killed_driver_submits_nothing_twice(on_cluster):
    _, before, after, said = on_cluster
    assert "taken over from an earlier start" in said
    names = list(after.values())
    assert len(names) == len(set(names)), sorted(names)
    assert set(before) <= set(after)


def test_a_cluster_is_done_when_it_is_done(on_cluster, cluster):
    project = on_cluster[0]
    done = subprocess.run(
        ON_SLURM, cwd=project.folder, env=project.environment(**cluster.environment()),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr
    kept = [each.name for each in (project.folder / ".snakemake/submitit").rglob("*")]
    assert sorted(kept) == ["driver", "jobs"]
