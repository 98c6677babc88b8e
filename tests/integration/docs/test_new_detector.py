"""The documents' worked example of a detector, followed in a copy of the code."""

import sys

import pytest

from tests.helpers.documents import follow_detector_example
from tests.helpers.project_copy import ProjectCopy

EXPERIMENT = "coco_retinanet_giou_smt_small"

STEP = f"""
import torch
from smt.config.load import load_project
from smt.runs.paths import bundled_params
from smt.tasks.synthetic import Synthetic

torch.manual_seed(0)
task = Synthetic(load_project(bundled_params(), "smoke"), "{EXPERIMENT}", torch.device("cpu"))
losses = task.model(*next(task.micro_batches()).loss_inputs)
assert sorted(losses) == ["box", "class"], losses
sum(losses.values()).backward()
assert all(each.grad is not None for each in task.model.parameters())
assert 0 < float(losses["box"]) <= 4 and torch.isfinite(losses["class"]), losses  # 2 (1 - GIoU)
print(type(task.model).__module__)
"""


@pytest.fixture
def python(tmp_path):
    """Return a function that runs Python in a copy of the code with that detector."""
    project = ProjectCopy(tmp_path / "project")
    follow_detector_example(project)

    def run(*arguments):
        result = project.run(sys.executable, *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def test_a_detector_is_one_record_one_module_and_one_entry(python):
    assert python("-c", STEP) == "smt.detection.retinanet_giou\n"


@pytest.mark.slow
def test_a_new_detector_is_measured_and_planned_as_the_others(python):
    python("-m", "smt", "profile", "--update")
    rows = python("-m", "smt", "check", "--scale", "smoke").splitlines()
    assert any(row.startswith(EXPERIMENT) for row in rows)
    costs = python("-m", "smt", "plan", "--scale", "paper", "--csv").splitlines()
    macs = {row.split(",")[0]: row.split(",")[4] for row in costs}
    assert macs[EXPERIMENT] == macs["coco_retinanet_smt_small"]
