"""Training steps on the fake GPU: what they find, and that they leave no trace in the process."""

import json
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  the module that is looked up below
from click.testing import CliRunner
from torch import nn

from smt.commands.rehearse import command
from smt.config.load import load_project
from smt.detection import pooling
from smt.detection.transfer import to_device
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
    ("experiment", "precision"),
    [
        (CLASSIFIER, "fp32"), (CLASSIFIER, "bf16"), (CLASSIFIER, "fp16"), (DETECTOR, "bf16"),
        ("coco_cascade_mask_rcnn_smt_small", "fp32"), ("coco_retinanet_smt_small", "fp32"),
        ("coco_atss_smt_small", "fp16"), ("coco_sparse_rcnn_smt_small", "fp32"),
        ("coco_dino_smt_small", "bf16"), ("ade20k_upernet_smt_small", "fp32"),
    ],
)  # fmt: skip
def test_every_kind_of_network_trains_and_predicts(experiment, precision):
    result = rehearse(SMOKE, experiment, precision=precision, images=2)
    assert result.failure == "" and result.without_gradient == ()
    assert result.kernels > 100 and result.traffic_bytes > result.training_bytes
    assert result.training_bytes > result.prediction_bytes > 0


def test_memory_and_traffic_of_a_model_of_the_paper():
    result = rehearse(PAPER, CLASSIFIER)
    # An H200 had 8.28 GiB allocated at the peak: docs/gpu.md.
    assert result.training_bytes / GIB == pytest.approx(8.28, rel=0.03)
    (wait,) = result.waits.items()
    assert wait[0].startswith("a list at smt/engine/trainer.py") and wait[1] == 1


@pytest.mark.parametrize(
    ("experiment", "most"),
    [
        # The end of a step; sampling for the RPN; proposals and their suppression in two images;
        # then each stage samples regions, and pools them for boxes and for masks.
        (DETECTOR, 1 + 1 + 3 + 3), ("coco_cascade_mask_rcnn_smt_small", 1 + 1 + 3 + 3 * 3),
        # The end of a step; the positive anchors.
        ("coco_retinanet_smt_small", 2), ("coco_atss_smt_small", 2),
        # The end of a step; the matcher; each of six stages pools regions.
        ("coco_sparse_rcnn_smt_small", 1 + 1 + 6), ("coco_dino_smt_small", 1 + 1),
        ("ade20k_upernet_smt_small", 1),
    ],
)  # fmt: skip
def test_a_step_waits_for_the_gpu_no_more_often_than_it_must(experiment, most):
    result = rehearse(PAPER, experiment)
    assert result.failure == ""
    assert 1 <= sum(result.waits.values()) <= most, result.waits


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


class Copying(nn.Module):
    """A classifier that copies a constant to the GPU in every step."""

    def __init__(self, inner, copy):
        super().__init__()
        self.inner, self.copy = inner, copy

    def forward(self, images):
        bias = torch.ones(SMOKE.datasets["imagenet1k"].classes)
        return self.inner(images) + self.copy(bias, images.device)


def broken(monkeypatch, kind):
    def build(*arguments, **options):
        return kind(network(*arguments, **options))

    monkeypatch.setattr(synthetic, "network", build)
    return rehearse(SMOKE, CLASSIFIER, precision="bf16")


def test_a_constant_that_stayed_on_the_cpu_is_found(monkeypatch):
    result = broken(monkeypatch, Constant)
    assert result.failure.startswith("aten.add.Tensor has a tensor of the GPU and one of the CPU")
    assert "(smt/" in result.failure and result.training_bytes == 0


def test_a_buffer_of_another_type_is_found(monkeypatch):
    result = broken(monkeypatch, Single)
    assert result.failure.startswith("mm of tensors of bfloat16 and float32")


@pytest.mark.parametrize(
    ("copy", "waits"),
    [
        (lambda constant, device: constant.to(device), 1),
        (lambda constant, device: constant.to(device, non_blocking=True), 1),
        (lambda constant, device: constant.pin_memory().to(device), 1),
        (to_device, 0),
    ],
    ids=["plain", "not pinned", "blocking", "pinned"],
)
def test_a_copy_is_waited_for_unless_it_is_of_pinned_memory(monkeypatch, copy, waits):
    result = broken(monkeypatch, partial(Copying, copy=copy))
    assert result.failure == ""
    assert sum(count for what, count in result.waits.items() if "copy" in what) == waits


def test_a_parameter_without_a_gradient_is_found(monkeypatch):
    result = broken(monkeypatch, Unused)
    assert result.failure == "" and result.without_gradient == ("extra",)


def test_roi_align_by_indices_is_found_by_its_memory(monkeypatch):
    before = rehearse(PAPER, DETECTOR)
    assert before.training_bytes < 12 * GIB

    def by_indices(features, boxes, resolution, *, scale=1.0, sampling_ratio=-1, **_):
        # What torchvision takes on a GPU with deterministic algorithms, but for its compiler.
        own = sys.modules["torchvision.ops.roi_align"]._roi_align.__wrapped__
        return own(features, boxes, scale, resolution, resolution, sampling_ratio, True)

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


def rehearsal(*arguments):
    return CliRunner().invoke(command, [*arguments, "--scale", "smoke"])


def test_the_command_prints_a_line_each_and_writes_json(tmp_path):
    done = rehearsal(CLASSIFIER, "--waits", "--json", str(tmp_path / "out.json"))
    assert done.exit_code == 0, done.output
    first, *waits, last = done.output.splitlines()
    assert first.startswith(f"{CLASSIFIER}: fp32, 16 images: training ")
    assert [wait.split()[0] for wait in waits] == ["1"]
    assert last.startswith("1 rehearsed for NVIDIA A100 SXM4 80 GB (80 GB), 0 refused")
    (entry,) = json.loads((tmp_path / "out.json").read_text())
    assert entry["experiment"] == CLASSIFIER and entry["training_bytes"] > 0


def test_what_does_not_fit_the_card_is_refused_with_what_would_help(monkeypatch):
    monkeypatch.setattr("smt.commands.rehearse._BESIDE_TENSORS", int(80e9) - 2**20)
    done = rehearsal(CLASSIFIER)
    assert done.exit_code == 4
    assert "REFUSED: a card of 80 GB has 0.00 GiB for tensors; lower device_batch" in done.output


def test_a_failure_is_one_line_and_the_others_are_rehearsed(monkeypatch):
    monkeypatch.setattr(
        synthetic, "network", lambda *_, **options: Constant(network(*_, **options))
    )
    done = rehearsal(CLASSIFIER, "imagenet1k_smt_small")
    assert done.exit_code == 4 and done.output.count("FAILED: aten.add.Tensor") == 2
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("imagenet1k_smt_tny",), "did you mean imagenet1k_smt_tiny"),
        (("--gpu", "v100"), "compute capability 7.0"),
        (("--gpu", "a101"), "no kind 'a101'"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = rehearsal(*arguments)
    assert isinstance(done.exception, UserError) and message in str(done.exception)
