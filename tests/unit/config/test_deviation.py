"""Which heads take something over all processes at once, and what fewer processes change of it."""

import pytest
import torch

from smt.config.deviation import deviation
from smt.config.load import load_project
from smt.detection import atss, dino, sparse_rcnn
from smt.models.sync_norm import SyncBatchNorm
from smt.runs.paths import bundled_params
from smt.tasks.synthetic import Synthetic

PAPER, SMOKE = (load_project(bundled_params(), scale) for scale in ("paper", "smoke"))
HEADS = {entry.head: name for name, entry in PAPER.experiments.items() if entry.head}
MODULES = (atss, dino, sparse_rcnn)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_says_what_its_code_takes_over_processes(monkeypatch, head):
    asked = []
    for module in MODULES:
        plain = module.mean_over_ranks
        monkeypatch.setattr(
            module, "mean_over_ranks", lambda count, plain=plain: asked.append(1) or plain(count)
        )
    task = Synthetic(SMOKE, HEADS[head], torch.device("cpu"), images=2, size=(64, 64))
    task.loss(task.model, next(task.micro_batches()))
    norms = any(isinstance(module, SyncBatchNorm) for module in task.model.modules())
    phrase = SMOKE.heads[head].over_processes
    assert norms == ("BatchNorm" in phrase)
    assert bool(asked) == ("divided" in phrase)


def test_the_paper_s_number_of_gpus_is_no_deviation():
    for name in PAPER.order:
        gpus = PAPER.cluster.scales["paper"].gpus_of(name, PAPER.experiments[name].recipe)[0]
        assert deviation(PAPER, name, gpus) is None, name


@pytest.mark.parametrize(
    ("experiment", "says"),
    [
        ("ade20k_upernet_smt_base", "on 2 GPUs instead of 8, the head's synchronised BatchNorm "
         "takes statistics of 4 images at once instead of 16"),
        ("coco_cascade_mask_rcnn_smt_small", "synchronised BatchNorm takes statistics of 4 images"),
        ("coco_dino_smt_small", "losses are divided by the mean number of positives of 4 images"),
        ("coco_atss_smt_small", "positives"), ("coco_sparse_rcnn_smt_small", "positives"),
    ],
)  # fmt: skip
def test_fewer_gpus_are_named_with_what_they_change(experiment, says):
    sentence = deviation(PAPER, experiment, 2)
    assert sentence.startswith("not the paper's training: ") and says in sentence
    assert "on 1 GPU instead" in deviation(PAPER, experiment, 1)


@pytest.mark.parametrize(
    "experiment",
    ["imagenet1k_smt_tiny", "imagenet22k_smt_large", "coco_mask_rcnn_3x_smt_base",
     "coco_retinanet_smt_small"],
)  # fmt: skip
def test_what_sees_one_micro_batch_at_a_time_stays_the_paper_s(experiment):
    assert deviation(PAPER, experiment, 1) is None
