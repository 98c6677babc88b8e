"""A training over several nodes of a SLURM: one job, a process for each GPU."""

import json
import statistics

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.helpers.project_copy import ProjectCopy
from tests.helpers.trainings import IMAGES, RUN_OF_DEMO, edit_demo, make_small, shrink_demo, smt

pytestmark = pytest.mark.xdist_group("cluster")

RUN = f"results/demo/runs/{RUN_OF_DEMO}/seed0"
ONE_IMAGE = 100 / (10 * IMAGES["imagenet1k"]["val"])
"""Of those validated on, in percent."""


@pytest.fixture(scope="module", params=[(2, 1), pytest.param((4, 2), marks=pytest.mark.slow)])
def gpus(request):
    """GPUs of a training, and of each node."""
    return request.param


@pytest.fixture(scope="module")
def project(tmp_path_factory, gpus):
    """A project of small data, whose global batches 1, 2 or 4 processes can share."""
    project = ProjectCopy(tmp_path_factory.mktemp("ranks") / "project")
    shrink_demo(project.folder)
    make_small(project.folder)
    edit_demo(project.folder, lambda demo: demo["recipes"]["*"].update(device_batch=2))
    for action in ("make", "manifest"):
        smt(project.folder, "data", action, "imagenet1k", "--scale", "demo")
    return project


def set_gpus(project, gpus, per_node):
    path = project.folder / "params" / "cluster.yaml"
    content = yaml.safe_load(path.read_text())
    content["gpus_per_node"] = per_node
    content["scales"]["demo"]["recipes"] = {"imagenet1k": {"gpus": gpus}}
    path.write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def trained(project, gpus, cluster, tmp_path_factory):
    """The same run on two nodes, by the DAG, and on one rank."""
    one = project.copy(tmp_path_factory.mktemp("one") / "project")
    set_gpus(project, *gpus)
    result = project.module(
        "snakemake", "--profile", "slurm", f"{RUN}/metrics.json", "--config", "scale=demo",
        "--submitit-keep-logs", "all", new_processes=True, **cluster.environment(),
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    smt(one.folder, "train", RUN_OF_DEMO, "--scale", "demo")
    return project.folder, one.folder


def test_ranks_on_two_nodes_give_the_weights_of_one_rank(trained):
    records = [json.loads((folder / RUN / "metrics.json").read_text()) for folder in trained]
    assert records[0]["fingerprint"] == records[1]["fingerprint"]
    top1 = [record["metrics"]["top1"] for record in records]
    assert top1[0] == pytest.approx(top1[1], abs=ONE_IMAGE)
    first, second = (load_file(folder / RUN / "model.safetensors") for folder in trained)
    assert first.keys() == second.keys()
    # Sums are added in another order, no more. Of a bias that a norm takes out again, noise is all.
    weights = [name for name in first if name.endswith("weight")]
    apart = [float(torch.dist(first[n], second[n]) / second[n].norm()) for n in weights]
    assert statistics.median(apart) < 1e-3


def test_the_ranks_were_one_job_of_two_nodes(trained, gpus):
    (provenance,) = (trained[0] / RUN).glob("work-*/provenance.json")
    (attempt,) = json.loads(provenance.read_text())["attempts"]
    assert attempt["environment"]["world_size"] == gpus[0]
    (log,) = (trained[0] / ".snakemake/submitit").glob(f"{attempt['slurm_job_id']}_0_log.out")
    assert log.read_text().count("submitit: attempt 1") == 1
