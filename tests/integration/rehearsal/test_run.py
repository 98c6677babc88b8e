"""Training steps on the fake GPU: what they find, and that they leave no trace in the process."""

import csv
import json
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  the module that is looked up below
from click.testing import CliRunner
from torch import nn

from smt.commands.plan import command as plan_command
from smt.commands.rehearse import command
from smt.detection import pooling
from smt.detection.transfer import to_device
from smt.errors import UserError
from smt.models import mixed_precision
from smt.rehearsal import fake_gpu, memory
from smt.rehearsal.run import rehearse
from smt.runs import rehearsals
from smt.runs.paths import Layout
from smt.tasks import synthetic
from smt.tasks.network import network
from tests.helpers.params import project_at

SMOKE, PAPER = (project_at(scale) for scale in ("smoke", "paper"))
CLASSIFIER, DETECTOR = "imagenet1k_smt_tiny", "coco_mask_rcnn_1x_smt_small"
GIB = 2**30


WAITS = {
    # The end of a step.
    CLASSIFIER: 1, "ade20k_upernet_smt_small": 1,
    # That; sampling for the RPN; proposals and their suppression in two images; then each stage
    # samples regions, and pools them for boxes and for masks.
    DETECTOR: 1 + 1 + 3 + 3, "coco_cascade_mask_rcnn_smt_small": 1 + 1 + 3 + 3 * 3,
    # The end of a step; the positive anchors.
    "coco_retinanet_smt_small": 2, "coco_atss_smt_small": 2,
    # The end of a step; the matcher; each stage of Sparse R-CNN pools regions.
    "coco_sparse_rcnn_smt_small": 1 + 1, "coco_dino_smt_small": 1 + 1,
}  # fmt: skip
"""How often a step of each kind of network waits for the GPU at most."""


def most_waits(project, experiment):
    head = project.experiments[experiment].head
    return WAITS[experiment] + (project.heads[head].stages if head == "sparse_rcnn" else 0)


@pytest.mark.parametrize(
    ("experiment", "precision"),
    [
        (CLASSIFIER, "fp32"), (CLASSIFIER, "bf16"), (CLASSIFIER, "fp16"), (DETECTOR, "bf16"),
        pytest.param("coco_cascade_mask_rcnn_smt_small", "fp32", marks=pytest.mark.slow),
        ("coco_retinanet_smt_small", "fp32"),
        ("coco_atss_smt_small", "fp16"), ("coco_sparse_rcnn_smt_small", "fp32"),
        ("coco_dino_smt_small", "bf16"), ("ade20k_upernet_smt_small", "fp32"),
    ],
)  # fmt: skip
def test_every_kind_of_network_trains_and_predicts(experiment, precision):
    result = rehearse(SMOKE, experiment, precision=precision, images=2)
    assert result.failure == "" and result.without_gradient == []
    assert result.kernels > 100 and result.traffic_bytes > result.training_bytes
    assert result.training_bytes > result.prediction_bytes > 0
    assert 1 <= sum(result.waits.values()) <= most_waits(SMOKE, experiment), result.waits


def test_memory_and_traffic_of_a_model_of_the_paper(monkeypatch):
    result = rehearse(PAPER, CLASSIFIER)
    (wait,) = result.waits.items()
    assert wait[0].startswith("a list at smt/engine/trainer.py") and wait[1] == 1
    monkeypatch.setattr(mixed_precision, "half_of", lambda x: None)
    by_autocast = rehearse(PAPER, CLASSIFIER)
    # An H200 had 8.28 GiB allocated at the peak by autocast alone: docs/gpu.md.
    assert by_autocast.training_bytes / GIB == pytest.approx(8.28, rel=0.03)
    assert result.training_bytes < 0.92 * by_autocast.training_bytes
    assert result.traffic_bytes < 0.85 * by_autocast.traffic_bytes
    assert result.kernels < 0.7 * by_autocast.kernels
    assert result.prediction_traffic_bytes < 0.93 * by_autocast.prediction_traffic_bytes
    assert result.prediction_kernels < 0.65 * by_autocast.prediction_kernels


@pytest.mark.slow
@pytest.mark.parametrize("experiment", list(WAITS))
def test_a_step_of_the_paper_waits_for_the_gpu_no_more_often_than_it_must(experiment):
    result = rehearse(PAPER, experiment)
    assert result.failure == ""
    assert 1 <= sum(result.waits.values()) <= most_waits(PAPER, experiment), result.waits


@pytest.mark.slow
@pytest.mark.parametrize("experiment", PAPER.order)
def test_every_experiment_of_the_paper_fits_its_gpu(experiment):
    result = rehearse(PAPER, experiment)
    assert result.failure == "" and result.without_gradient == []
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
    assert result.failure == "" and result.without_gradient == ["extra"]


@pytest.mark.slow
def test_roi_align_by_indices_is_found_by_its_memory(monkeypatch):
    before = rehearse(PAPER, DETECTOR)
    assert before.size == (1344, 1344), "a landscape and a portrait in one batch"
    assert before.training_bytes < 18 * GIB

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


@pytest.fixture(autouse=True)
def results(monkeypatch, tmp_path):
    """Keep what is rehearsed by a command in a folder of the test's own."""
    monkeypatch.setenv("SMT_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def rehearsal(*arguments):
    return CliRunner().invoke(command, [*arguments, "--scale", "smoke"])


def on_small_card(monkeypatch, room):
    """Let every card have so many bytes for tensors, but for the H200, which is as it is."""
    plain = memory.room
    monkeypatch.setattr(
        memory, "room", lambda card: plain(card) if card.title == "NVIDIA H200 SXM" else room
    )


def test_the_command_prints_a_line_each_and_writes_json(tmp_path):
    done = rehearsal(CLASSIFIER, "--waits", "--json", str(tmp_path / "out.json"))
    assert done.exit_code == 0, done.output
    first, *waits, last = done.output.splitlines()
    assert first.startswith(f"{CLASSIFIER}: fp32, 16 images of 32 x 32: training ")
    assert [wait.split()[0] for wait in waits] == ["1"]
    assert last.startswith("1 rehearsed for NVIDIA A100 SXM4 80 GB (80 GB), 0 refused")
    (entry,) = json.loads((tmp_path / "out.json").read_text())
    assert entry["experiment"] == CLASSIFIER and entry["training_bytes"] > 0


def test_what_does_not_fit_the_card_is_refused_with_what_would_help(monkeypatch):
    on_small_card(monkeypatch, 2**20)
    done = rehearsal(CLASSIFIER)
    assert done.exit_code == 4
    assert "of the 0.00 GiB that the card has; what would help: smt plan --memory" in done.output
    assert rehearsal(CLASSIFIER, "--exit-zero").exit_code == 0


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


# --- what is kept, and smt plan --memory -------------------------------------------------------


def planned(*options, scale="smoke"):
    return CliRunner().invoke(plan_command, ["--memory", "--scale", scale, *options])


def only(names, monkeypatch):
    """Let the project have a few experiments."""
    kept = {name: SMOKE.experiments[name] for name in names}
    project = SMOKE.model_copy(update={"experiments": kept, "tables": {}})
    for cached in ("order", "runs", "systems"):
        project.__dict__.pop(cached, None)
    layout = Layout.from_environment("smoke")
    monkeypatch.setattr("smt.commands.plan.load", lambda scale: (project, layout))
    return layout


@pytest.mark.slow
def test_recomputed_a_network_takes_less_and_is_kept_beside_the_other(results):
    plain, less = (
        rehearse(PAPER, CLASSIFIER, images=16, recompute=recompute) for recompute in (False, True)
    )
    assert less.failure == "" and less.without_gradient == []
    assert less.training_bytes < 0.5 * plain.training_bytes
    assert plain.kernels < less.kernels < 1.5 * plain.kernels
    layout = Layout("paper", results)
    for result in (plain, less):
        rehearsals.add(PAPER, layout, result)
    kept = rehearsals.read(PAPER, layout, CLASSIFIER)
    assert kept.find(16, True) == less and kept.find(16, False) == plain
    assert kept.find(8, False) is None


def test_the_plan_rehearses_what_was_not_yet_and_reads_the_rest(monkeypatch, results):
    layout = only([CLASSIFIER, "imagenet1k_smt_small", "ade20k_upernet_smt_small"], monkeypatch)
    first = planned()
    assert first.exit_code == 0, first.output
    assert first.stderr.count("smt: rehearsing ") == 3
    assert f"rehearsing {CLASSIFIER}, 16 images a GPU" in first.stderr
    lines = first.stdout.splitlines()
    line = next(each for each in lines[::-1] if each.startswith(CLASSIFIER)).split()
    assert line[1:6] == ["16", "32", "x", "32", "no"] and line[-1] == "yes"
    again = planned("--json")
    assert again.exit_code == 0 and again.stderr == ""
    document = json.loads(again.stdout)
    assert {each["experiment"] for each in document["memory"]} == {
        CLASSIFIER, "imagenet1k_smt_small", "ade20k_upernet_smt_small",
    }  # fmt: skip
    assert all(each["fits"] for each in document["memory"])
    path = layout.rehearsal(CLASSIFIER)
    path.write_text(path.read_text().replace('"key": "', '"key": "0'))
    assert planned().stderr.count("smt: rehearsing ") == 1, "one is of other code"


def test_other_params_are_another_rehearsal_and_a_title_is_not():
    def key(**changes):
        recipe = SMOKE.recipes["imagenet1k"].model_copy(update=changes)
        recipes = {**SMOKE.recipes, "imagenet1k": recipe}
        return rehearsals.key(SMOKE.model_copy(update={"recipes": recipes}), CLASSIFIER)

    assert key() == key(title="another", eval_every=7, recompute=True)
    assert len({key(), key(resolution=64), key(precision="bf16"), key(drop_path=0.7)}) == 3
    assert key() != rehearsals.key(SMOKE, "imagenet1k_smt_small")


@pytest.mark.slow
def test_what_does_not_fit_is_named_with_what_would_make_it_fit(monkeypatch):
    only([CLASSIFIER], monkeypatch)
    now, less, half, both = (
        rehearse(SMOKE, CLASSIFIER, images=images, recompute=recompute).peak_bytes
        for images, recompute in ((16, False), (16, True), (8, False), (8, True))
    )
    assert both < less < now and half < now
    on_small_card(monkeypatch, max(less, half))
    done = planned()
    assert done.exit_code == 4
    said = done.stdout
    assert f"{CLASSIFIER} does not fit: " in said
    assert "recompute: true in its recipe, or imagenet1k_smt_tiny in kinds.a100_80gb." in said
    assert "\n  device_batch: 8: " in said and "on 2 GPUs or by accumulation" in said
    assert "BatchNorms then see 8 images and not 16, so this is not the paper's training" in said
    assert "another kind of GPU: h200" in said
    on_small_card(monkeypatch, both)
    said = planned().stdout
    assert "recompute: true in its recipe" not in said
    assert "\n  recompute: true and device_batch: 8: " in said


def test_the_table_has_a_row_each(results):
    done = rehearsal(CLASSIFIER, "coco_retinanet_smt_small", "--table")
    assert done.exit_code == 0, done.output
    folder = results / "smoke" / "rehearsal"
    assert (folder / f"{CLASSIFIER}.json").is_file()
    assert {path.suffix for path in folder.glob("rehearsal.*")} == {".md", ".csv", ".tex", ".html"}
    rows = list(csv.DictReader((folder / "rehearsal.csv").open()))
    assert [row["experiment"] for row in rows] == [CLASSIFIER, "coco_retinanet_smt_small"]
    assert all(row["fits"] == "True" and int(row["training_bytes"]) > 0 for row in rows)


def test_a_detector_s_batch_is_as_large_as_its_recipe_s_augmentation_can_make_it():
    def sizes(**options):
        task = synthetic.Synthetic(SMOKE, DETECTOR, torch.device("cpu"), **options)
        return task.sizes, task.canvas

    assert sizes(images=2) == ([(800, 1333)] * 2, (800, 1344))
    recipe = PAPER.recipes["mask_rcnn_3x"]
    assert synthetic.largest_sizes(recipe) == ((800, 1333), (1333, 800))
    demo = project_at("demo").recipes["mask_rcnn_3x"]
    assert synthetic.largest_sizes(demo) == ((96, 160), (160, 96))


def test_a_plan_of_memory_has_no_csv_and_another_torch_cannot_make_one(monkeypatch):
    only([CLASSIFIER], monkeypatch)
    refused = planned("--csv")
    assert isinstance(refused.exception, UserError)
    assert "valid: --memory, --memory --json" in str(refused.exception)
    monkeypatch.setattr(fake_gpu, "TORCH", "1.13")
    refused = planned()
    assert isinstance(refused.exception, UserError)
    assert "a rehearsal needs torch 1.13" in str(refused.exception)
