"""Heads that use statistics over all processes, and deviations of fewer processes."""

import pytest
import torch

from smt.config.deviation import deviation
from smt.detection import atss, dino, sparse_rcnn
from smt.models.sync_norm import SyncBatchNorm
from smt.tasks.synthetic import Synthetic
from tests.helpers.params import project_at

PAPER, SMOKE = (project_at(scale) for scale in ("paper", "smoke"))
HEADS = {entry.head: name for name, entry in PAPER.experiments.items() if entry.head}
MODULES = (atss, dino, sparse_rcnn)


@pytest.mark.parametrize("head", HEADS)
def test_over_processes_of_a_head_agrees_with_its_code(monkeypatch, head):
    calls = []
    for module in MODULES:
        plain = module.mean_over_ranks
        monkeypatch.setattr(
            module, "mean_over_ranks", lambda count, plain=plain: calls.append(1) or plain(count)
        )
    task = Synthetic(SMOKE, HEADS[head], torch.device("cpu"), images=2, size=(64, 64))
    task.loss(task.model, next(task.micro_batches()))
    norms = any(isinstance(module, SyncBatchNorm) for module in task.model.modules())
    phrase = SMOKE.heads[head].over_processes
    assert norms == ("BatchNorm" in phrase)
    assert bool(calls) == ("divided" in phrase)


def test_the_paper_s_number_of_gpus_is_no_deviation():
    for name in PAPER.order:
        gpus = PAPER.cluster.scales["paper"].gpus_of(name, PAPER.experiments[name].recipe)[0]
        assert deviation(PAPER, name, gpus) is None, name


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        ("ade20k_upernet_smt_base", "on 2 GPUs instead of 8, the head's synchronised BatchNorm "
         "takes statistics of 4 images at once instead of 16"),
        ("coco_cascade_mask_rcnn_smt_small", "synchronised BatchNorm takes statistics of 4 images"),
        ("coco_dino_smt_small", "losses are divided by the mean number of positives of 4 images"),
        ("coco_atss_smt_small", "positives"), ("coco_sparse_rcnn_smt_small", "positives"),
    ],
)  # fmt: skip
def test_a_deviation_names_what_fewer_gpus_change(experiment, expected):
    sentence = deviation(PAPER, experiment, 2)
    assert sentence.startswith("not the paper's training: ") and expected in sentence
    assert "on 1 GPU instead" in deviation(PAPER, experiment, 1)


@pytest.mark.parametrize(
    "experiment",
    ["imagenet1k_smt_tiny", "imagenet22k_smt_large", "coco_mask_rcnn_3x_smt_base",
     "coco_retinanet_smt_small"],
)  # fmt: skip
def test_without_statistics_over_processes_there_is_no_deviation(experiment):
    assert deviation(PAPER, experiment, 1) is None
