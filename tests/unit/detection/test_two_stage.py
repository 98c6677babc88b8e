"""Mask R-CNN and Cascade Mask R-CNN: parameters and MACs, training steps and predictions."""

import math

import pytest
import torch
from torch import nn

from smt.detection.structures import Target
from smt.models import profile
from tests.helpers.dense_scenes import parameter_count, train
from tests.helpers.two_stage_scenes import batch, box_and_mask_ap, on_meta, scene, scenes, small

KINDS = ("mask_rcnn", "cascade_mask_rcnn")
PARTS = ("neck", "rpn", "box_heads", "mask_heads")


# Parameters of each part and in total, in millions, as in the reference.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("mask_rcnn", (2.607, 0.594, 14.307, 2.643, 42.19)),
        ("cascade_mask_rcnn", (2.607, 0.594, 3 * 15.618, 3 * 2.643, 80.02)),
    ],
)
def test_parameter_counts_equal_the_reference(name, millions):
    model = on_meta(name)
    parts = [parameter_count(getattr(model, part)) / 1e6 for part in PARTS]
    assert parts == pytest.approx(millions[:4], abs=2e-3)
    assert parameter_count(model) / 1e6 == pytest.approx(millions[4], abs=5e-3)
    assert parameter_count(model.backbone) + sum(parts) * 1e6 == pytest.approx(
        parameter_count(model)
    )


def test_the_parameter_count_of_mask_rcnn_is_exact():
    assert parameter_count(on_meta("mask_rcnn")) == 42_188_976
    assert parameter_count(on_meta("mask_rcnn", "smt_base")) / 1e6 == pytest.approx(51.68, abs=5e-3)


def forward_all_layers(model):
    """Forward an image of 1280 x 800 through all layers, with 1000 boxes and 100 masks a stage."""
    with torch.inference_mode():
        levels = model.neck(model.backbone(torch.empty(1, 3, 800, 1280, device="meta")))
        model.rpn(levels)
        for boxes, masks in zip(model.box_heads, model.mask_heads, strict=True):
            boxes(torch.empty(1000, 256, 7, 7, device="meta"))
            masks(torch.empty(100, 256, 14, 14, device="meta"))


def gmacs(name, backbone="smt_small"):
    """Return GMACs of convolutions and linear layers of each part, and totals in two conventions.

    "as published" includes biases, norms and ReLUs, but no attention.
    """
    model = on_meta(name, backbone)
    macs, extra = dict.fromkeys(PARTS, 0), 0

    def hook(part, module, x, output):
        nonlocal extra
        if isinstance(module, nn.Linear):
            macs[part] += x.numel() * module.out_features
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            # A weight is used at each location of the output; if transposed, of the input.
            locations = x if isinstance(module, nn.ConvTranspose2d) else output
            macs[part] += module.weight.numel() * locations[:, 0].numel()
            extra += output.numel() if module.bias is not None else 0
        elif isinstance(module, nn.ReLU):
            extra += output.numel()
        # The published figure of the cascade does not include its SyncBatchNorm.

    for part in PARTS:
        for module in getattr(model, part).modules():
            module.register_forward_hook(
                lambda module, inputs, output, part=part: hook(part, module, inputs[0], output)
            )
    with profile._counting(model.backbone) as counter:
        forward_all_layers(model)
    backbone_counts = profile.Counts(
        **{kind: counter[kind] for kind in profile.Counts.__annotations__}
    )
    total = backbone_counts.reported + sum(macs.values()) + extra
    counts = {
        **macs,
        "as published": total,
        "with attention": backbone_counts.attention + sum(macs.values()),
    }
    return {part: count / 1e9 for part, count in counts.items()}


def test_macs_equal_the_reference():
    mask, cascade = (gmacs(name) for name in KINDS)
    for counts in (mask, cascade):
        assert counts["neck"] == pytest.approx(52.10, abs=5e-3)
        assert counts["rpn"] == pytest.approx(50.62, abs=5e-3)
    # 12,544 x 1024 + 1024 x 1024 + 1024 x 401; with its ReLUs it is 14.31.
    assert mask["box_heads"] == pytest.approx(14.304256)
    assert mask["mask_heads"] == pytest.approx(52.99, abs=5e-3)
    assert cascade["box_heads"] == pytest.approx(3 * 128.86, abs=0.015)
    assert mask["as published"] == pytest.approx(265.84, abs=5e-3)
    assert cascade["as published"] == pytest.approx(744.42, abs=5e-3)
    assert mask["with attention"] == pytest.approx(340.8, abs=0.05)
    assert cascade["with attention"] == pytest.approx(819.1, abs=0.05)


@pytest.mark.slow
def test_macs_of_the_base_variant_equal_the_reference():
    """The counts of `smt profile` are tested in test_downstream_macs.py."""
    base = gmacs("mask_rcnn", "smt_base")
    assert base["as published"] == pytest.approx(328.00, abs=5e-3)
    assert base["with attention"] == pytest.approx(443.6, abs=0.05)


def step(model, images, targets):
    """Return the losses of a step, in which every parameter has a finite gradient."""
    model.zero_grad(set_to_none=True)
    losses = model(images, targets)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    return losses


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_has_a_gradient_for_any_batch(name):
    model = small(name).train()
    images, targets = batch()
    losses = step(model, images, targets)
    assert all(loss > 0 for loss in losses.values())
    empty = [scene([], (64, 64)), scene([], (30, 33))]
    losses = step(model, images[:2], empty)
    for loss, value in losses.items():
        assert (value > 0) == loss.endswith("class"), loss
    step(model, images[:1, :, :32, :32], [scene([(1, (3, 3, 20, 30))], (31, 30))])


def without_proposals(model):
    """Shift all proposals out of the image."""
    with torch.no_grad():
        model.rpn.offsets.bias[::4] += 100
    return model


@pytest.mark.parametrize("name", KINDS)
def test_without_proposals_a_step_trains_and_there_are_no_detections(name):
    model = without_proposals(small(name))
    images, targets = batch()
    step(model.train(), images, targets)
    step(model, images[:1], [scene([], (64, 64))])  # no region at all
    with torch.no_grad():
        results = model.eval().predict(images, [target.size for target in targets])
    for detections in results:
        assert detections.boxes.shape == (0, 4) and detections.masks.shape == (0, 28, 28)
        assert detections.scores.shape == detections.labels.shape == (0,)


@pytest.mark.parametrize("name", KINDS)
def test_detections_are_inside_the_image_and_sorted_by_score(name):
    model = small(name, spread=0.5).eval()
    sizes = [(64, 96), (41, 57), (64, 33)]
    with torch.no_grad():
        results = model.predict(torch.randn(3, 3, 64, 96), sizes)
    for detections, (height, width) in zip(results, sizes, strict=True):
        assert 10 < len(detections.boxes) <= 100
        assert (detections.boxes >= 0).all()
        assert (detections.boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (detections.boxes[:, 2:] >= detections.boxes[:, :2]).all()
        assert torch.equal(detections.scores, detections.scores.sort(descending=True).values)
        assert (detections.scores > 0.05).all() and (detections.scores <= 1).all()
        assert detections.masks.shape == (len(detections.boxes), 28, 28)
        assert ((detections.masks >= 0) & (detections.masks <= 1)).all()
        assert (
            detections.masks.dtype
            == detections.boxes.dtype
            == detections.scores.dtype
            == torch.float32
        )


@pytest.mark.parametrize("name", KINDS)
def test_detections_of_an_image_are_independent_of_the_batch(name):
    model = small(name, spread=0.5).eval()
    images, sizes = torch.randn(3, 3, 64, 96), [(64, 96), (41, 57), (64, 33)]
    with torch.no_grad():
        batched = model.predict(images, sizes)
        for index, size in enumerate(sizes):
            (single,) = model.predict(images[index : index + 1], [size])
            assert torch.equal(single.labels, batched[index].labels)
            assert torch.allclose(single.boxes, batched[index].boxes, atol=1e-3)
            assert torch.allclose(single.scores, batched[index].scores, atol=1e-5)
            assert torch.allclose(single.masks, batched[index].masks, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_losses_and_detections_under_autocast_are_float32(name):
    model = small(name)
    images, targets = batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = step(model.train(), images, targets)
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        with torch.no_grad():
            (detections, *_) = small(name, spread=0.5).eval().predict(images, [(64, 64)] * 3)
    assert (
        len(detections.boxes) and detections.boxes.dtype == detections.masks.dtype == torch.float32
    )


@pytest.mark.parametrize("name", KINDS)
def test_a_step_depends_on_the_seed_of_torch_only(name):
    images, targets = scenes(2, 64)
    model = small(name, boxes=8)
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        losses.append([loss.item() for loss in model(images, targets).values()])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("layer", ["regression", "classifier"])
def test_the_loss_of_a_diverged_stage_is_nan_and_prediction_still_works(layer):
    model = small("cascade_mask_rcnn")
    images, targets = batch()
    nn.init.constant_(getattr(model.box_heads[0], layer).weight, math.nan)
    losses = model(images, targets)
    assert losses["stage0_box" if layer == "regression" else "stage0_class"].isnan()
    with torch.no_grad():
        model.eval().predict(images, [(64, 64)] * 3)


def test_a_target_without_masks_is_refused():
    images, (first, *_) = scenes(1, 64)
    with pytest.raises(ValueError, match="masks"):
        small("mask_rcnn")(images, [Target(first.boxes, first.labels, first.size)])


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn"])
def test_a_few_steps_lower_the_loss(name):
    images, targets = scenes(2, 64)
    first, *_, last = train(small(name, boxes=16), images, targets, steps=12, lr=3e-3)
    assert last < 0.8 * first


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("mask_rcnn", 200), ("cascade_mask_rcnn", 130)])
def test_overfits_eight_images(name, steps):
    images, targets = scenes(8, 64)
    model = small(name, boxes=16)
    train(model, images, targets, steps=steps, lr=3e-3)
    box_ap, mask_ap = box_and_mask_ap(model, images, targets)
    assert box_ap > 0.9 and mask_ap > 0.9
