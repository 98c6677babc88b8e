"""UPerNet: published sizes, outputs against a reference, losses, and training."""

from collections import Counter
from contextlib import contextmanager
from math import ceil, floor, sqrt
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smt.evaluation.semantic import confusion, scores
from smt.models import profile
from smt.models.pyramid import Pyramid
from smt.models.sync_norm import SyncBatchNorm
from smt.segmentation.resample import average, resize
from smt.segmentation.upernet import ConvNorm, PixelClassifier, UPerNet, pixel_loss
from tests.helpers.params import project_at

PAPER = project_at("paper")
HEAD: Any = PAPER.heads["upernet"]


def small(classes=4, drop_path=0.0, **changes):
    """Return a UPerNet of few channels."""
    model = PAPER.models["smt_tiny"].model_copy(
        update={"widths": (16, 32, 64, 128), "depths": (1, 1, 2, 1)}
    )
    head = HEAD.model_copy(update={"channels": 24, "auxiliary_channels": 16, **changes})
    return UPerNet(Pyramid(model, drop_path), head=head, classes=classes)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def on_meta(name):
    with torch.device("meta"):
        return UPerNet(Pyramid(PAPER.models[name], 0.2), head=HEAD, classes=150).eval()


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def giga_macs(counts):
    """Return 1e9 MACs: counted as in published tables, and with those of attention."""
    return round(counts.reported / 1e9, 2), round(counts.attention / 1e9, 1)


def test_parameters_are_those_of_the_published_heads():
    c4, c, classes = 512, 512, 150
    conv_norm = [  # (channels, kernel, out_channels): weights, and 2 of the norm for each output
        *[(c4, 1, c)] * 4, (c4 + 4 * c, 3, c),                      # pyramid pooling
        *[(width, 1, c) for width in (64, 128, 256)],               # lateral
        *[(c, 3, c)] * 3, (4 * c, 3, c),                            # levels, fusion
    ]  # fmt: skip
    expected = sum(i * k * k * o + 2 * o for i, k, o in conv_norm) + (c + 1) * classes
    for name, whole in (("smt_small", 52_345_580), ("smt_base", 61_831_980)):
        network = on_meta(name)
        assert parameters(network.decoder) == expected == 29_678_742
        assert parameters(network.auxiliary) == 256 * 9 * 256 + 2 * 256 + 257 * 150 == 628_886
        assert parameters(network) == whole


@pytest.mark.parametrize(
    ("name", "reported", "full"),
    [("smt_small", 940.65, 1019.1), ("smt_base", 1004.30, 1125.3)],
)
def test_multiply_accumulates_of_an_image_of_512_x_2048(name, reported, full):
    network = on_meta(name)
    images = torch.empty(1, 3, 512, 2048, device="meta")
    counts = profile.count_forward(network, images, forward=network.logits)
    assert giga_macs(counts) == (reported, full)
    stage3 = torch.empty(1, 256, 32, 128, device="meta")
    assert giga_macs(profile.count_forward(network.auxiliary, stage3))[0] == 2.58


NORM = ("running_mean", "running_var", "weight", "bias")


def reference(state, levels, sides):
    """Return UPerNet's logits, written from figure 4 of its paper for given weights (eval mode)."""

    def conv_norm(name, x):
        weight = state[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        norm = {key: state[f"{name}.norm.{key}"] for key in NORM}
        return F.batch_norm(x, **norm).relu()

    def to(x, other):
        return F.interpolate(x, other.shape[2:], mode="bilinear", align_corners=False)

    p2, p3, p4 = (conv_norm(f"lateral.{i}", levels[i]) for i in range(3))
    c5 = levels[3]
    pooled = [
        to(conv_norm(f"pooling.branches.{i}", F.adaptive_avg_pool2d(c5, side)), c5)
        for i, side in enumerate(sides)
    ]
    p5 = conv_norm("pooling.bottleneck", torch.cat([c5, *pooled], 1))
    p4 = p4 + to(p5, p4)
    p3 = p3 + to(p4, p3)
    p2 = p2 + to(p3, p2)
    p2, p3, p4 = (conv_norm(f"output.{i}", x) for i, x in enumerate((p2, p3, p4)))
    fused = conv_norm("fuse", torch.cat([p2, to(p3, p2), to(p4, p2), to(p5, p2)], 1))
    return F.conv2d(fused, state["classifier.conv.weight"], state["classifier.conv.bias"])


def randomise_norms(network):
    """Give every norm random statistics and weights, as in a trained network."""
    for module in network.modules():
        if isinstance(module, SyncBatchNorm):
            for tensor, low in (
                (module.weight, 0.5),
                (module.running_var, 0.5),
                (module.bias, -0.5),
            ):
                nn.init.uniform_(tensor, low, low + 1)
            nn.init.normal_(module.running_mean)


@pytest.mark.parametrize("size", [(64, 96), (97, 70), (33, 130)])
def test_logits_are_bit_for_bit_those_of_an_independent_upernet(size):
    torch.manual_seed(0)
    network = small().eval()
    randomise_norms(network)
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        levels = network.backbone(images)
        expected = reference(network.decoder.state_dict(), levels, HEAD.pools)
        logits = network.logits(images)
    assert torch.equal(logits, expected) and logits.std() > 0.001
    assert logits.shape[2:] == levels[0].shape[2:]


@pytest.mark.parametrize(("size", "side"), [((7, 5), 3), ((16, 16), 6), ((4, 9), 1), ((2, 1), 6)])
def test_pooling_averages_over_the_cells_of_a_grid(size, side):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = torch.empty(2, 3, side, side, dtype=torch.float64)
    for i, j in np.ndindex(side, side):
        rows, columns = (
            slice(floor(k * length / side), ceil((k + 1) * length / side))
            for k, length in zip((i, j), size, strict=True)
        )
        expected[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    assert torch.allclose(average(x, side), expected)
    with deterministic():
        assert torch.allclose(average(x, side), expected)


@pytest.mark.parametrize("size", [(12, 20), (3, 2), (7, 5), (5, 31)])
def test_resizing_is_bilinear_between_pixel_centres(size):
    x = torch.randn(1, 2, 7, 5, dtype=torch.float64)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    expected = torch.empty(1, 2, *size, dtype=torch.float64)
    for i, j in np.ndindex(size):
        y, column = (
            (k + 0.5) * source / target + 0.5
            for k, source, target in zip((i, j), (7, 5), size, strict=True)
        )
        (top, v), (left, u) = divmod(y, 1), divmod(column, 1)
        part = padded[:, :, int(top) : int(top) + 2, int(left) : int(left) + 2]
        weights = x.new_tensor([[(1 - v) * (1 - u), (1 - v) * u], [v * (1 - u), v * u]])
        expected[:, :, i, j] = (part * weights).sum((2, 3))
    assert torch.allclose(resize(x, size), expected)
    with deterministic():
        assert torch.allclose(resize(x, size), expected)


def test_deterministic_algorithms_give_the_same_losses_and_gradients():
    def train(network):
        torch.manual_seed(1)
        losses = network(torch.randn(2, 3, 96, 64), torch.randint(0, 4, (2, 96, 64)))
        network.zero_grad()
        sum(losses.values()).backward()
        return losses, [parameter.grad.clone() for parameter in network.parameters()]

    torch.manual_seed(0)
    network = small(dropout=0.0).double()
    torch.set_default_dtype(torch.float64)
    expected_losses, expected_gradients = train(network)
    with deterministic():
        losses, gradients = train(network)
    assert all(torch.allclose(losses[name], expected_losses[name]) for name in expected_losses)
    assert all(map(torch.allclose, gradients, expected_gradients))


def test_deterministic_resizing_keeps_its_precision_under_autocast():
    x = torch.randn(1, 2, 7, 5)
    expected, coarse = resize(x, (13, 20)), resize(x.bfloat16(), (13, 20))
    with deterministic(), torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(resize(x, (13, 20)), expected, atol=1e-6)
        assert torch.allclose(average(x, 3), F.adaptive_avg_pool2d(x, 3), atol=1e-6)
        assert torch.allclose(resize(x.bfloat16(), (13, 20)), coarse, atol=0.03)


def test_the_loss_is_the_mean_over_all_pixels_including_unlabelled_ones():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 6, 4), torch.randint(0, 5, (2, 24, 16))
    labels[0, :10] = 255
    labels[1, :, 3] = 255
    enlarged = F.interpolate(logits.double(), (24, 16), mode="bilinear", align_corners=False)
    total = 0.0
    for image, y, x in np.ndindex(2, 24, 16):
        if labels[image, y, x] != 255:
            values = enlarged[image, :, y, x]
            total += float(values.exp().sum().log() - values[labels[image, y, x]])
    assert pixel_loss(logits, labels).item() == pytest.approx(total / (2 * 24 * 16), rel=1e-5)


def test_the_auxiliary_loss_is_weighted():
    torch.manual_seed(0)
    network = small(dropout=0.0, auxiliary_weight=0.4).eval()
    randomise_norms(network)
    images, labels = torch.randn(2, 3, 64, 96), torch.randint(0, 4, (2, 64, 96))
    losses = network(images, labels)
    auxiliary = network.auxiliary(network.backbone(images)[2])
    assert auxiliary.shape == (2, 4, 4, 6)
    assert losses.keys() == {"segment", "auxiliary"}
    assert torch.equal(losses["segment"], pixel_loss(network.logits(images), labels))
    assert torch.allclose(losses["auxiliary"], 0.4 * pixel_loss(auxiliary, labels))
    assert HEAD.auxiliary_weight == 0.4


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (51, 70)])
@pytest.mark.parametrize("labelled", [True, False])
def test_any_batch_trains_every_parameter(batch, size, labelled):
    torch.manual_seed(0)
    network = small(drop_path=0.2)
    labels = torch.randint(0, 4, (batch, *size)) if labelled else torch.full((batch, *size), 255)
    losses = network(torch.randn(batch, 3, *size), labels)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters()}
    assert all(value is not None and value.isfinite().all() for value in gradients.values())
    if labelled:
        assert all(losses[name] > 0 for name in losses)
        assert gradients["decoder.classifier.conv.weight"].abs().sum() > 0
        assert gradients["auxiliary.1.conv.weight"].abs().sum() > 0
    else:
        assert not any(losses.values()) and not any(value.any() for value in gradients.values())


def test_conv_norm_trains_on_a_single_value():
    layer = ConvNorm(2, 3, 1)
    nn.init.normal_(layer.norm.bias)
    x = torch.randn(1, 2, 1, 1)
    assert torch.allclose(layer(x).flatten(), layer.norm.bias.relu())
    assert torch.allclose(layer.norm.running_mean, 0.1 * layer.conv(x).flatten())


def test_it_trains_and_predicts_under_autocast():
    torch.manual_seed(0)
    network = small()
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 4, (2, 64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        losses = network(images, labels)
        assert network.eval().logits(images).dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())


def test_logits_of_an_image_do_not_depend_on_its_batch():
    torch.manual_seed(0)
    network, images = small().eval(), torch.randn(3, 3, 64, 80)
    with torch.inference_mode():
        together = network.logits(images)
        one_by_one = torch.cat([network.logits(image[None]) for image in images])
    assert torch.allclose(together, one_by_one, atol=1e-6)


def test_weights_start_as_in_the_reference():
    torch.manual_seed(0)
    head = HEAD.model_copy(update={"channels": 128})
    backbone = Pyramid(PAPER.models["smt_tiny"].model_copy(update={"depths": (1, 1, 2, 1)}), 0.0)
    network = UPerNet(backbone, head=head, classes=150)
    kinds = Counter()
    for module in [*network.decoder.modules(), *network.auxiliary.modules()]:
        kinds[type(module)] += 1
        if isinstance(module, ConvNorm):
            outputs, _, kernel, _ = module.conv.weight.shape
            assert module.conv.weight.std().item() == pytest.approx(
                sqrt(2 / (outputs * kernel**2)), rel=0.03
            )
            assert module.conv.bias is None
        elif isinstance(module, PixelClassifier):
            assert module.conv.weight.std().item() == pytest.approx(0.01, rel=0.03)
            assert not module.conv.bias.any() and module.dropout.p == 0.1
    assert kinds[ConvNorm] == 13 and kinds[PixelClassifier] == 2


def shapes(seed, side=64):
    """Return an image (3, side, side) of a noisy ground, a disc and a square, and its labels."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    labels = np.zeros((side, side), np.int64)
    y, x = generator.integers(8, 40, 2)
    labels[y : y + 22, x : x + 22] = 1
    y, x = generator.integers(16, 48, 2)
    labels[(rows - y) ** 2 + (columns - x) ** 2 < 13**2] = 2
    colours = np.array([[0.0, 0, 0], [1, -1, 0.5], [-1, 1, 0.5]])
    image = colours[labels] + 0.5 * generator.standard_normal((side, side, 3))
    return torch.from_numpy(image).float().permute(2, 0, 1), torch.from_numpy(labels)


def train(network, images, labels, steps):
    """Train in batches of four images, and return the loss of each step."""
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    losses = []
    for step in range(steps):
        part = slice(4 * step % len(images), 4 * step % len(images) + 4)
        optimizer.zero_grad()
        loss = sum(network(images[part], labels[part]).values())
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def learning(count):
    """Return a small network as it starts, images and labels."""
    torch.manual_seed(0)
    images, labels = map(torch.stack, zip(*(shapes(seed) for seed in range(count)), strict=True))
    return small(classes=3), images, labels


def test_a_few_steps_lower_the_loss():
    first, *_, last = train(*learning(4), steps=20)
    assert last < 0.8 * first


@pytest.mark.slow
def test_it_fits_eight_images():
    network, images, labels = learning(8)
    train(network, images, labels, steps=140)
    network.eval()
    with torch.inference_mode():
        predictions = resize(network.logits(images), (64, 64)).argmax(1).numpy()
    miou = scores(confusion(predictions, labels.numpy(), 3)).miou
    assert miou > 90
