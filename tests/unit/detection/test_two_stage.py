"""Mask R-CNN and Cascade Mask R-CNN: their sizes, what the engine asks, and that they learn."""

import math

import pytest
import torch
from torch import nn

from smt.detection.structures import Target
from smt.models import profile
from tests.helpers.dense_scenes import parameters, train
from tests.helpers.two_stage_scenes import batch, on_meta, precision, scene, scenes, small

KINDS = ("mask_rcnn", "cascade_mask_rcnn")
PARTS = ("neck", "rpn", "box_heads", "mask_heads")


# Of each part and of all, in millions, as the reference gives them.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("mask_rcnn", (2.607, 0.594, 14.307, 2.643, 42.19)),
        ("cascade_mask_rcnn", (2.607, 0.594, 3 * 15.618, 3 * 2.643, 80.02)),
    ],
)
def test_parameters_are_those_of_the_reference(name, millions):
    model = on_meta(name)
    parts = [parameters(getattr(model, part)) / 1e6 for part in PARTS]
    assert parts == pytest.approx(millions[:4], abs=2e-3)
    assert parameters(model) / 1e6 == pytest.approx(millions[4], abs=5e-3)
    assert parameters(model.backbone) + sum(parts) * 1e6 == pytest.approx(parameters(model))


def test_mask_rcnn_has_exactly_as_many_parameters_as_the_reference():
    assert parameters(on_meta("mask_rcnn")) == 42_188_976
    assert parameters(on_meta("mask_rcnn", "smt_base")) / 1e6 == pytest.approx(51.68, abs=5e-3)


def run(model):
    """Let an image of 1280 x 800 through all layers, with 1000 boxes a stage and 100 masks."""
    with torch.inference_mode():
        levels = model.neck(model.backbone(torch.empty(1, 3, 800, 1280, device="meta")))
        model.rpn(levels)
        for boxes, masks in zip(model.box_heads, model.mask_heads, strict=True):
            boxes(torch.empty(1000, 256, 7, 7, device="meta"))
            masks(torch.empty(100, 256, 14, 14, device="meta"))


def gmacs(name, backbone="smt_small"):
    """Return 10^9 MACs of convolutions and layers of each part, and of all in two conventions.

    As published counts biases, norms and ReLUs, but no attention.
    """
    model = on_meta(name, backbone)
    macs, extra = dict.fromkeys(PARTS, 0), 0

    def hook(part, module, x, output):
        nonlocal extra
        if isinstance(module, nn.Linear):
            macs[part] += x.numel() * module.out_features
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            # Each weight meets each place: of the output, or of what is taken apart.
            places = x if isinstance(module, nn.ConvTranspose2d) else output
            macs[part] += module.weight.numel() * places[:, 0].numel()
            extra += output.numel() if module.bias is not None else 0
        elif isinstance(module, nn.ReLU):
            extra += output.numel()
        # The figure of the Cascade leaves its synchronised norms out.

    for part in PARTS:
        for module in getattr(model, part).modules():
            module.register_forward_hook(
                lambda module, inputs, output, part=part: hook(part, module, inputs[0], output)
            )
    with profile._counting(model.backbone) as counter:
        run(model)
    own = profile.Counts(**{each: counter[each] for each in profile.Counts.__annotations__})
    total = own.reported + sum(macs.values()) + extra
    counts = {**macs, "as published": total, "with attention": own.attention + sum(macs.values())}
    return {each: count / 1e9 for each, count in counts.items()}


def test_macs_are_those_of_the_reference():
    mask, cascade = (gmacs(name) for name in KINDS)
    for each in (mask, cascade):
        assert each["neck"] == pytest.approx(52.10, abs=5e-3)
        assert each["rpn"] == pytest.approx(50.62, abs=5e-3)
    # 12,544 x 1024 + 1024 x 1024 + 1024 x 401; with its ReLUs it is 14.31.
    assert mask["box_heads"] == pytest.approx(14.304256)
    assert mask["mask_heads"] == pytest.approx(52.99, abs=5e-3)
    assert cascade["box_heads"] == pytest.approx(3 * 128.86, abs=0.015)
    assert mask["as published"] == pytest.approx(265.84, abs=5e-3)
    assert cascade["as published"] == pytest.approx(744.42, abs=5e-3)
    assert mask["with attention"] == pytest.approx(340.8, abs=0.05)
    assert cascade["with attention"] == pytest.approx(819.1, abs=0.05)


@pytest.mark.slow
def test_macs_of_the_base_variant_are_those_of_the_reference():
    """As `smt profile` counts them they are those of test_downstream_macs.py."""
    base = gmacs("mask_rcnn", "smt_base")
    assert base["as published"] == pytest.approx(328.00, abs=5e-3)
    assert base["with attention"] == pytest.approx(443.6, abs=0.05)


def step(model, images, targets):
    """Return the losses of a step whose gradient every parameter has."""
    model.zero_grad(set_to_none=True)
    losses = model(images, targets)
    sum(losses.values()).backward()
    for name, each in model.named_parameters():
        assert each.grad is not None and each.grad.isfinite().all(), name
    assert all(each.shape == () and each.isfinite() for each in losses.values())
    return losses


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_has_a_gradient_whatever_the_batch_holds(name):
    model = small(name).train()
    images, targets = batch()
    losses = step(model, images, targets)
    assert all(each > 0 for each in losses.values())
    empty = [scene([], (64, 64)), scene([], (30, 33))]
    losses = step(model, images[:2], empty)
    for loss, value in losses.items():
        assert (value > 0) == loss.endswith("class"), loss
    step(model, images[:1, :, :32, :32], [scene([(1, (3, 3, 20, 30))], (31, 30))])


def without_proposals(model):
    """Move all that is proposed out of the image."""
    with torch.no_grad():
        model.rpn.offsets.bias[::4] += 100
    return model


@pytest.mark.parametrize("name", KINDS)
def test_without_a_proposal_the_objects_are_learned_and_nothing_is_found(name):
    model = without_proposals(small(name))
    images, targets = batch()
    step(model.train(), images, targets)
    step(model, images[:1], [scene([], (64, 64))])  # not one region to look at
    with torch.no_grad():
        results = model.eval().predict(images, [each.size for each in targets])
    for each in results:
        assert each.boxes.shape == (0, 4) and each.masks.shape == (0, 28, 28)
        assert each.scores.shape == each.labels.shape == (0,)


@pytest.mark.parametrize("name", KINDS)
def test_detections_lie_in_their_images_best_first(name):
    model = small(name, spread=0.5).eval()
    sizes = [(64, 96), (41, 57), (64, 33)]
    with torch.no_grad():
        results = model.predict(torch.randn(3, 3, 64, 96), sizes)
    for found, (height, width) in zip(results, sizes, strict=True):
        assert 10 < len(found.boxes) <= 100
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
        assert (found.scores > 0.05).all() and (found.scores <= 1).all()
        assert found.masks.shape == (len(found.boxes), 28, 28)
        assert ((found.masks >= 0) & (found.masks <= 1)).all()
        assert found.masks.dtype == found.boxes.dtype == found.scores.dtype == torch.float32


@pytest.mark.parametrize("name", KINDS)
def test_an_images_detections_do_not_depend_on_its_neighbours(name):
    model = small(name, spread=0.5).eval()
    images, sizes = torch.randn(3, 3, 64, 96), [(64, 96), (41, 57), (64, 33)]
    with torch.no_grad():
        together = model.predict(images, sizes)
        for index, size in enumerate(sizes):
            (alone,) = model.predict(images[index : index + 1], [size])
            assert torch.equal(alone.labels, together[index].labels)
            assert torch.allclose(alone.boxes, together[index].boxes, atol=1e-3)
            assert torch.allclose(alone.scores, together[index].scores, atol=1e-5)
            assert torch.allclose(alone.masks, together[index].masks, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_trains_and_predicts(name):
    model = small(name)
    images, targets = batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = step(model.train(), images, targets)
        assert all(each.dtype == torch.float32 for each in losses.values())
        with torch.no_grad():
            (found, *_) = small(name, spread=0.5).eval().predict(images, [(64, 64)] * 3)
    assert len(found.boxes) and found.boxes.dtype == found.masks.dtype == torch.float32


@pytest.mark.parametrize("name", KINDS)
def test_a_step_depends_on_torchs_seed_alone(name):
    images, targets = scenes(2, 64)
    model = small(name, boxes=8)
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        losses.append([each.item() for each in model(images, targets).values()])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("layer", ["regression", "classifier"])
def test_a_stage_that_diverged_shows_in_the_loss_and_breaks_nothing(layer):
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
def test_it_learns_a_few_images_by_heart(name, steps):
    images, targets = scenes(8, 64)
    model = small(name, boxes=16)
    train(model, images, targets, steps=steps, lr=3e-3)
    box_ap, mask_ap = precision(model, images, targets)
    assert box_ap > 0.9 and mask_ap > 0.9
