"""Training steps on the fake GPU: what they find, and that they leave no trace in the process."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from smt.config.load import load_project
from smt.detection import pooling
from smt.errors import UserError
from smt.rehearsal import fake_gpu
from smt.rehearsal.run import rehearse
from smt.runs.paths import bundled_params
from smt.tasks import synthetic
from smt.tasks.network import network

SMOKE, PAPER = (load_project(bundled_params(), scale) for scale in ("smoke", "paper"))
CLASSIFIER, DETECTOR = "imagenet1k_smt_tiny", "coco_mask_rcnn_1x_smt_small"
GIB = 2**30


@pytest.mark.parametrize(
    "experiment",
    [
        CLASSIFIER, DETECTOR, "coco_cascade_mask_rcnn_smt_small", "coco_retinanet_smt_small",
        "coco_atss_smt_small", "coco_sparse_rcnn_smt_small", "coco_dino_smt_small",
        "ade20k_upernet_smt_small",
    ],
)  # fmt: skip
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_kind_of_network_trains_and_predicts(experiment, precision):
    result = rehearse(SMOKE, experiment, precision=precision, images=2)
    assert result.failure == "" and result.without_gradient == ()
    assert result.kernels > 100 and result.traffic_bytes > result.training_bytes
    assert result.training_bytes > result.prediction_bytes > 0


def test_memory_and_traffic_of_a_model_of_the_paper():
    result = rehearse(PAPER, CLASSIFIER)
    # An H200 had 8.28 GiB allocated at the peak: docs/gpu.md.
    assert result.training_bytes / GIB == pytest.approx(8.28, rel=0.03)
    assert result.waits.keys() == {
        place for place in result.waits if place.startswith("a number at smt/engine/trainer.py")
    }
    assert sum(result.waits.values()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("experiment", PAPER.order)
def test_every_experiment_of_the_paper_fits_its_gpu(experiment):
    result = rehearse(PAPER, experiment)
    assert result.failure == "" and result.without_gradient == ()
    assert result.training_bytes < 78e9, "an A100 has 80 GB"


class Constant(nn.Module):
    """A classifier with a tensor that is neither parameter nor buffer."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.bias = inner, torch.ones(SMOKE.datasets["imagenet1k"].classes)

    def forward(self, images):
        return self.inner(images) + self.bias


class Single(nn.Module):
    """A classifier that multiplies half precision with a buffer in single precision."""

    def __init__(self, inner):
        super().__init__()
        classes = SMOKE.datasets["imagenet1k"].classes
        self.inner = inner
        self.register_buffer("matrix", torch.eye(classes))

    def forward(self, images):
        logits = self.inner(images)
        with torch.autocast("cuda", enabled=False):
            return logits @ self.matrix


class Unused(nn.Module):
    """A classifier with a parameter that nothing uses."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.extra = inner, nn.Parameter(torch.ones(3))

    def forward(self, images):
        return self.inner(images)


def broken(monkeypatch, kind):
    def build(*arguments, **options):
        return kind(network(*arguments, **options))

    monkeypatch.setattr(synthetic, "network", build)
    return rehearse(SMOKE, CLASSIFIER, precision="bf16")


def test_a_constant_that_stayed_on_the_cpu_is_found(monkeypatch):
    result = broken(monkeypatch, Constant)
    print(result.failure)
    assert "two different devices cuda:0, cpu" in result.failure
    assert "(smt/" in result.failure and result.training_bytes == 0


def test_a_buffer_of_another_type_is_found(monkeypatch):
    result = broken(monkeypatch, Single)
    assert result.failure.startswith("mm of tensors of bfloat16 and float32")


def test_a_parameter_without_a_gradient_is_found(monkeypatch):
    result = broken(monkeypatch, Unused)
    assert result.failure == "" and result.without_gradient == ("extra",)


def test_roi_align_by_indices_is_found_by_its_memory(monkeypatch):
    before = rehearse(PAPER, DETECTOR)
    assert before.training_bytes < 12 * GIB

    def by_indices(features, boxes, resolution, *, counts=None, scale=1.0, sampling_ratio=-1):
        return torchvision.ops.roi_align(
            features, boxes, resolution, scale, sampling_ratio, aligned=True
        )

    monkeypatch.setattr(pooling, "roi_align", by_indices)
    after = rehearse(PAPER, DETECTOR)
    assert after.failure == "" and after.training_bytes > 1000 * GIB


def test_the_process_is_as_it_was():
    attention, tolist = F.scaled_dot_product_attention, torch.Tensor.tolist
    rehearse(SMOKE, CLASSIFIER)
    assert F.scaled_dot_product_attention is attention and torch.Tensor.tolist is tolist
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.autograd.is_multithreading_enabled()
    x = torch.ones(3, requires_grad=True)
    (x * 2).sum().backward()
    assert x.grad.tolist() == [2, 2, 2]


def test_another_version_of_torch_is_refused(monkeypatch):
    monkeypatch.setattr(fake_gpu, "TORCH", "1.13")
    with pytest.raises(UserError, match=r"a rehearsal needs torch 1\.13, whose .* \(make env\)"):
        rehearse(SMOKE, CLASSIFIER)


def test_a_machine_with_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"this machine has a GPU.* CUDA_VISIBLE_DEVICES= smt"):
        rehearse(SMOKE, CLASSIFIER)
