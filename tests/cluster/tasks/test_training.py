"""A training over several nodes of a SLURM: one job, a process for each GPU."""

import json
import statistics
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.helpers.project_copy import ProjectCopy
from tests.helpers.trainings import edit_demo, shrink_demo

pytestmark = pytest.mark.xdist_group("trained_on_nodes")  # what they share is made once

RUN = "results/demo/runs/imagenet1k_smt_tiny/seed0"


@pytest.fixture(scope="module")
def project(tmp_path_factory, demo_data):
    """A project whose SMT-T has the demo's widths and depths, and global batches of four parts."""
    project = ProjectCopy(tmp_path_factory.mktemp("ranks") / "project")
    widths = yaml.safe_load((project.folder / "params/scales.yaml").read_text())
    tiny = widths["demo"]["models"]["smt_tiny"]
    shrink_demo(project.folder)
    edit_demo(project.folder, lambda demo: demo["models"].update(smt_tiny=tiny))
    edit_demo(
        project.folder,
        lambda demo: (
            demo["recipes"]["*"].update(device_batch=16),
            demo["recipes"]["imagenet1k"]["schedule"].update(epochs=1, warmup_epochs=0),
        ),
    )
    (project.folder / "data").symlink_to(demo_data / "data")
    return project


def set_gpus(project, gpus, per_node):
    path = project.folder / "params" / "cluster.yaml"
    content = yaml.safe_load(path.read_text())
    content["gpus_per_node"] = per_node
    content["scales"]["demo"]["recipes"] = {"imagenet1k": {"gpus": gpus}}
    path.write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def trained(project, cluster, tmp_path_factory):
    """The same run on 2 nodes x 2 ranks, by the DAG, and on one rank."""
    one = project.copy(tmp_path_factory.mktemp("one") / "project")
    set_gpus(project, 4, 2)
    done = project.run(
        sys.executable, "-m", "snakemake", "--profile", "slurm", f"{RUN}/metrics.json",
        "--config", "scale=demo", "--submitit-keep-logs", "all", **cluster.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    set_gpus(one, 1, 1)
    done = one.snakemake(f"{RUN}/metrics.json")
    assert done.returncode == 0, done.stdout + done.stderr
    return project.folder, one.folder


def test_four_ranks_on_two_nodes_train_as_one_does(trained):
    four, one = trained
    records = [json.loads((folder / RUN / "metrics.json").read_text()) for folder in trained]
    assert records[0]["fingerprint"] == records[1]["fingerprint"]
    top1 = [record["metrics"]["top1"] for record in records]
    assert top1[0] == pytest.approx(top1[1], abs=1.0)
    first, second = (load_file(folder / RUN / "model.safetensors") for folder in trained)
    assert first.keys() == second.keys()
    # Sums are added in another order, no more. Of a bias that a norm takes out again, noise is all.
    weights = [name for name in first if name.endswith("weight")]
    apart = [float(torch.dist(first[n], second[n]) / second[n].norm()) for n in weights]
    assert statistics.median(apart) < 1e-3


def test_they_were_one_job_of_two_nodes(trained):
    (provenance,) = (trained[0] / RUN).glob("work-*/provenance.json")
    (attempt,) = json.loads(provenance.read_text())["attempts"]
    assert attempt["environment"]["world_size"] == 4
    (log,) = (trained[0] / ".snakemake/submitit").glob(f"{attempt['slurm_job_id']}_0_log.out")
    assert log.read_text().count("submitit: attempt 1") == 1
