"""Estimates of `smt doctor`: sizes of runs on disk, and time limits as SLURM prints them."""

import pytest

from smt.cluster.doctor.project import run_bytes, weights
from smt.cluster.slurm import minutes
from tests.helpers.params import project_at


@pytest.mark.parametrize("model", ["smt_tiny", "smt_small", "smt_base", "smt_large"])
def test_the_estimate_of_a_models_weights_is_close(model):
    from smt.models import zoo

    spec = project_at("paper").models[model]
    expected = sum(
        parameter.numel() for parameter in zoo.skeleton(spec, num_classes=1000).parameters()
    )
    assert weights(spec, 1000) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("00:12:00", 12),
        ("1-00:00:00", 24 * 60),
        ("7-01:30:30", 7 * 24 * 60 + 90.5),
        ("UNLIMITED", float("inf")),
    ],
)
def test_a_time_limit_as_slurm_prints_it(limit, expected):
    assert minutes(limit) == expected


def test_the_disk_space_of_a_detector_includes_its_head():
    from smt.config.experiments import Run
    from smt.tasks import sizes

    project = project_at("paper")
    name = "coco_sparse_rcnn_smt_small"
    system = project.systems["sparse_rcnn.smt_small"]
    model, head = project.models[system.model], project.heads[system.head]
    parameters = sizes.downstream_counts(model, head, system.classes, system.size).parameters
    # Weights, and in each of three checkpoints weights and both moments of AdamW.
    expected = 4 * parameters * (3 * 3 + 1)
    assert run_bytes(project, Run(experiment=name, seed=0)) == pytest.approx(expected, rel=0.03)
