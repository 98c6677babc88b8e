"""DINO: parameters and MACs, parts against definitions, losses against loops, training."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from smt.detection import dino
from smt.detection.deformable import DeformableAttention
from smt.detection.dino import DINODetector
from smt.detection.dino_neck import levels_of
from smt.detection.dino_transformer import Predictions, Queries, _proposals, logit, sine
from smt.models import profile
from smt.models.pyramid import Pyramid
from tests.helpers.dense_scenes import (
    SmallBackbone,
    box_ap,
    focal,
    iou,
    parameter_count,
    scenes,
    target,
    train,
)
from tests.helpers.params import project_at

PAPER = project_at("paper")
SMALL = {
    "channels": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "heads": 4,
    "points": 2,
    "feedforward": 32,
    "queries": 12,
}
IMAGE, SIZES = (96, 160), [(96, 160), (50, 130), (65, 64)]  # a padded batch
SHAPES = [(12, 20), (6, 10), (3, 5), (2, 3)]


def untrained(seed=0, denoising=6, **changes):
    """Return a small untrained detector of 3 classes."""
    head: Any = PAPER.heads["dino"]
    noise = head.denoising.model_copy(update={"queries": denoising})
    head = head.model_copy(update={**SMALL, "denoising": noise, **changes})
    torch.manual_seed(seed)
    return DINODetector(SmallBackbone(), head=head, classes=3)


def small(**changes):
    """Return a small detector whose predictions and sampling offsets differ as after training."""
    model = untrained(**changes)
    transformer = model.transformer
    for head in [*transformer.decoder.box_heads, transformer.selection.box_head]:
        nn.init.normal_(head[-1].weight, std=0.3)
        nn.init.normal_(head[-1].bias, std=0.3)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, DeformableAttention):
            nn.init.normal_(module.offsets.weight, std=0.1)
            nn.init.normal_(module.weights.weight, std=0.1)
    return model


def padded_levels(channels=32, seed=1, maps=None):
    torch.manual_seed(seed)
    if maps is None:
        maps = [torch.randn(3, channels, *shape) for shape in SHAPES]
    return levels_of(maps, IMAGE, SIZES)


def padding_mask():
    """Return the padded pixels of the batch (B, H, W)."""
    mask = torch.ones(3, *IMAGE, dtype=torch.bool)
    for i, (height, width) in enumerate(SIZES):
        mask[i, :height, :width] = False
    return mask


def level_masks():
    """Return the padding mask of each level (B, H_i, W_i), resized as in the reference."""
    mask = padding_mask()[None].float()
    return [F.interpolate(mask, size=shape)[0].bool() for shape in SHAPES]


# Parameters and MACs.


def on_meta():
    with torch.device("meta"):
        backbone = Pyramid(PAPER.models["smt_small"], 0.2)
        return DINODetector(backbone, head=PAPER.heads["dino"], classes=80).eval()


def test_parameter_count_by_hand_with_separate_heads_of_layers():
    model = on_meta()
    attention = 256 * 257 * 2 + 257 * 256 + 257 * 128  # values, output; offsets; weights
    feedforward, norm = 257 * 2048 + 2049 * 256, 2 * 256
    encoder = 6 * (attention + feedforward + 2 * norm) + 4 * 256
    decoder = 6 * (attention + 4 * 257 * 256 + feedforward + 3 * norm) + norm
    positions = 513 * 256 + 257 * 256
    heads = 7 * (257 * 80 + 2 * 257 * 256 + 257 * 4)  # of six layers and the selection
    selection = 257 * 256 + norm + 900 * 256
    neck = sum((width + 1) * 256 + norm for width in (128, 256, 512, 512 * 9))
    total = encoder + decoder + positions + heads + selection + neck + 81 * 256
    assert parameter_count(model) - parameter_count(model.backbone) == total == 19_968_588
    assert parameter_count(model) == 42_006_540
    assert f"{parameter_count(model) / 1e6:.2f}" == "42.01"


def test_macs_by_hand():
    model = on_meta().requires_grad_(False)
    image = torch.empty(1, 3, 800, 1280, device="meta")
    whole = profile.count_forward(
        model, image, forward=lambda image: model.predict(image, [(800, 1280)])
    )
    backbone = profile.count_forward(model.backbone, image)
    assert f"{backbone.reported / 1e9:.2f}" == "95.68"
    assert f"{whole.attention / 1e9:.1f}" == "361.1"
    assert f"{whole.reported / 1e9:.2f}" == "282.52"

    locations = 100 * 160 + 50 * 80 + 25 * 40 + 13 * 20
    square, forward, box = 256 * 256, 2 * 256 * 2048, 2 * 256 * 256 + 256 * 4
    convolutions = 16000 * 128 * 256 + 4000 * square + 1000 * 512 * 256 + 260 * 512 * 9 * 256
    encoder = locations * 6 * (3.5 * square + forward)  # values, output, offsets, half for weights
    decoder = 6 * (locations * square + 900 * (2.5 * square + forward))
    heads = 6 * 900 * (256 * 80 + 2 * box + 3 * square)  # each box head twice; positions
    selection = locations * (square + 256 * 80 + box)
    by_hand = convolutions + encoder + decoder + heads + selection
    assert whole.conv_linear - backbone.conv_linear == by_hand
    # Self-attention of queries; deformable sampling has no matrix product.
    attention = 6 * 900 * (4 * square + 2 * 900 * 256)
    assert whole.attention_macs - backbone.attention_macs == attention
    assert whole.norm_elements - backbone.norm_elements == 256 * (locations * 14 + 900 * 6 * 4)
    relus = locations * (6 * 2048 + 512) + 900 * 6 * (2048 + 2 * 512 + 256)
    assert whole.relu_elements - backbone.relu_elements == relus
    assert whole.conv_outputs - backbone.conv_outputs == locations * 256


def test_initial_weights_follow_the_reference():
    torch.manual_seed(0)
    model = DINODetector(SmallBackbone(), head=PAPER.heads["dino"], classes=3)
    transformer = model.transformer
    heads = [*transformer.decoder.box_heads, transformer.selection.box_head]
    assert not any(head[-1].weight.any() or head[-1].bias.any() for head in heads)
    for head in [*transformer.decoder.class_heads, transformer.selection.class_head]:
        torch.testing.assert_close(head.bias.sigmoid(), torch.full((3,), 0.01))
    xavier = {  # by fan in and fan out
        transformer.encoder.layers[5].feedforward[0].weight: 256 + 2048,
        transformer.decoder.layers[5].feedforward[2].weight: 2048 + 256,
        transformer.decoder.layers[0].self_attention.in_proj_weight: 256 + 768,
        transformer.decoder.layers[0].self_attention.out_proj.weight: 512,
        transformer.decoder.positions[0].weight: 512 + 256,
        transformer.selection.projection.weight: 512,
        transformer.selection.content: 900 + 256,
        model.neck.projections[3][0].weight: 9 * (64 + 256),
    }
    for weight, fans in xavier.items():
        bound = math.sqrt(6 / fans)
        assert 0.99 * bound < weight.abs().max() <= bound
        assert abs(weight.std() / (bound / math.sqrt(3)) - 1) < 0.02
    assert abs(transformer.encoder.level_embedding.std() - 1) < 0.1


# Coordinates and positional encoding.


def test_padding_masks_and_valid_ratios_of_levels():
    levels = padded_levels()
    masks = level_masks()
    assert levels.shapes == SHAPES
    assert torch.equal(levels.padding, torch.cat([mask.flatten(1) for mask in masks], dim=1))
    assert masks[3].flatten(1).sum(1).tolist() == [0, 0, 2]  # an odd size, halved
    for level, mask in enumerate(masks):
        height, width = SHAPES[level]
        for image in range(3):
            valid = (~mask[image, 0]).sum() / width, (~mask[image, :, 0]).sum() / height
            torch.testing.assert_close(levels.valid[image, level], torch.stack(valid))
    assert levels.sides.tolist() == [[20, 12], [10, 6], [5, 3], [3, 2]]


def test_location_centres_are_fractions_of_the_unpadded_image():
    levels = padded_levels()
    centres = levels.split(levels.centres)
    for level, mask in enumerate(level_masks()):
        _, width = SHAPES[level]
        for image in range(3):
            rows, columns = int((~mask[image, :, 0]).sum()), int((~mask[image, 0]).sum())
            for row, column in itertools.product(range(rows), range(columns)):
                expected = torch.tensor([(column + 0.5) / columns, (row + 0.5) / rows])
                torch.testing.assert_close(centres[level][image, row * width + column], expected)


def test_positional_encoding_alternates_sine_and_cosine():
    numbers, channels, temperature = [0.3, 0.0, 0.9], 6, 20
    expected = []
    for number in numbers:
        for channel in range(channels):
            angle = 2 * math.pi * number / temperature ** (2 * (channel // 2) / channels)
            expected.append(math.cos(angle) if channel % 2 else math.sin(angle))
    torch.testing.assert_close(
        sine(torch.tensor(numbers), channels, temperature), torch.tensor(expected)
    )


def test_the_inverse_sigmoid_is_clamped():
    numbers = torch.tensor([-0.5, 0.0, 0.0005, 0.25, 0.5, 1.0, 2.0])
    low, high = math.log(1e-3 / 1), math.log(1 / 1e-3)
    near = math.log(1e-3 / 0.9995)
    expected = torch.tensor([low, low, near, math.log(1 / 3), 0, high, high])
    torch.testing.assert_close(logit(numbers), expected)


def record_inputs(module):
    """Return a list that collects the inputs of every call of `module`."""
    calls = []
    module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    return calls


def test_the_encoder_has_sine_encodings_and_reference_points_of_all_levels():
    encoder, levels = small().transformer.encoder, padded_levels()
    calls = record_inputs(encoder.layers[0])
    encoder(levels)
    features, positions, references, _ = calls[0]
    assert torch.equal(features, levels.features)
    first = 0
    for level, mask in enumerate(level_masks()):
        height, width = SHAPES[level]
        y, x = ((~mask).cumsum(axis, dtype=torch.float32) for axis in (1, 2))
        y, x = y / y[:, -1:].clamp(min=1), x / x[:, :, -1:].clamp(min=1)
        encoding = torch.cat(
            [sine(axis_positions[..., None], 16, 20) for axis_positions in (y, x)], dim=-1
        )
        encoding = encoding + encoder.level_embedding[level]
        of_level = slice(first, first + height * width)
        inside = ~mask.flatten(1)
        torch.testing.assert_close(
            positions[:, of_level][inside], encoding.flatten(1, 2)[inside], atol=1e-5, rtol=1e-5
        )
        for other_level in range(4):  # the same point of the image, relative to the padded size
            expected = levels.centres[:, of_level] * levels.valid[:, other_level, None]
            torch.testing.assert_close(references[:, of_level, other_level], expected)
        first += height * width


def test_only_locations_inside_the_image_have_proposals_of_the_level_size():
    levels = padded_levels()
    proposals, usable = _proposals(levels)
    first = 0
    for level, mask in enumerate(level_masks()):
        height, width = SHAPES[level]
        side = 0.05 * 2**level
        for image in range(3):
            rows, columns = int((~mask[image, :, 0]).sum()), int((~mask[image, 0]).sum())
            for row, column in itertools.product(range(height), range(width)):
                location = first + row * width + column
                box = [(column + 0.5) / columns, (row + 0.5) / rows, side, side]
                inside = row < rows and column < columns and all(0.01 < n < 0.99 for n in box)
                assert bool(usable[image, location]) == inside
                expected = [math.log(n / (1 - n)) if inside else math.inf for n in box]
                torch.testing.assert_close(proposals[image, location], torch.tensor(expected))
        first += height * width


# Queries.


def test_queries_are_selected_by_the_highest_class_score():
    selection, levels = small().transformer.selection, padded_levels()
    memory = torch.randn(3, levels.padding.shape[1], 32)
    queries, predictions = selection(memory, levels)
    proposals, usable = _proposals(levels)
    for image in range(3):
        features = torch.where(usable[image], memory[image], 0)
        features = selection.norm(selection.projection(features))
        logits, boxes = (
            selection.class_head(features),
            selection.box_head(features) + proposals[image],
        )
        selected = sorted(
            range(len(features)), key=lambda location: -logits[location].max().item()
        )[:12]
        torch.testing.assert_close(predictions.logits[0, image], logits[selected])
        torch.testing.assert_close(predictions.boxes[0, image], boxes[selected].sigmoid())
        torch.testing.assert_close(queries.boxes[image], boxes[selected])
        assert torch.equal(queries.content[image], selection.content)  # mixed query selection
    assert not queries.boxes.requires_grad
    assert predictions.boxes.requires_grad
    assert queries.content.requires_grad


def run_decoder(model, seed=3):
    """Run a decoder; return its predictions, queries, levels, layers' inputs and outputs."""
    decoder, levels = model.transformer.decoder, padded_levels()
    torch.manual_seed(seed)
    memory = torch.randn(3, levels.padding.shape[1], 32)
    queries = Queries(torch.randn(3, 5, 32), torch.randn(3, 5, 4))
    layer_inputs, layer_outputs = [record_inputs(layer) for layer in decoder.layers], []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: layer_outputs.append(output))
    return decoder(queries, memory, levels, None), queries, levels, layer_inputs, layer_outputs


def test_each_decoder_layer_refines_the_boxes_of_the_previous_one():
    model = small(decoder_layers=3)
    decoder = model.transformer.decoder
    predictions, queries, levels, layer_inputs, layer_outputs = run_decoder(model)
    reference = before = queries.boxes.sigmoid()
    for layer in range(3):
        (_, positions, references, *_), x = layer_inputs[layer][0], layer_outputs[layer]
        for level in range(4):
            ratio = levels.valid[:, level].repeat(1, 2)[:, None]
            torch.testing.assert_close(references[:, :, level], reference * ratio)
        x1, y1, width, height = references[:, :, 0].unbind(-1)
        encoding = torch.cat(
            [sine(coordinate[..., None], 16, 10000) for coordinate in (y1, x1, width, height)],
            dim=-1,
        )
        torch.testing.assert_close(positions, decoder.positions(encoding))
        normed = decoder.norm(x)
        torch.testing.assert_close(predictions.logits[layer], decoder.class_heads[layer](normed))
        head = decoder.box_heads[layer]
        torch.testing.assert_close(
            predictions.boxes[layer], (head(normed) + logit(before)).sigmoid()
        )
        before = reference = (head(x) + logit(reference)).sigmoid()


def test_boxes_of_a_layer_have_gradients_in_two_box_heads():
    """Called look forward twice in the paper."""
    model = small(decoder_layers=4)
    heads = model.transformer.decoder.box_heads
    predictions = run_decoder(model)[0]
    weights = [head[0].weight for head in heads]
    for layer in range(4):
        gradients = torch.autograd.grad(
            predictions.boxes[layer].sum(), weights, retain_graph=True, allow_unused=True
        )
        has_gradient = [gradient is not None and bool(gradient.any()) for gradient in gradients]
        assert has_gradient == [layer - head in (0, 1) for head in range(4)]


def test_padded_values_do_not_change_predictions():
    model = small().eval()
    maps = [torch.randn(3, 32, *shape) for shape in SHAPES]
    with torch.no_grad():
        clean = model.transformer(padded_levels(maps=maps))
        for x, mask in zip(maps, level_masks(), strict=True):
            x.permute(0, 2, 3, 1)[mask] += 100
        dirty = model.transformer(padded_levels(maps=maps))
        for expected, actual in zip(clean, dirty, strict=True):
            torch.testing.assert_close(expected.boxes, actual.boxes)
            torch.testing.assert_close(expected.logits, actual.logits)


def test_denoising_groups_do_not_affect_other_queries():
    model = small().eval()
    levels = padded_levels()
    torch.manual_seed(0)
    targets = [target([[5, 5, 40, 40], [10, 10, 60, 30]], [0, 2], size) for size in SIZES]
    noised = dino.denoising_queries(dino.objects_of(targets), model.head.denoising, 3)
    queries, mask = model._denoising(noised, levels)
    assert noised.groups == 3
    assert noised.queries == 12
    perturbed = queries.content.clone()
    perturbed[:, 4:8] += 1  # the second group
    with torch.no_grad():
        _, without_denoising = model.transformer(levels)
        _, predictions = model.transformer(levels, queries, mask)
        _, perturbed_predictions = model.transformer(
            levels, Queries(perturbed, queries.boxes), mask
        )
    torch.testing.assert_close(predictions.logits[:, :, 12:], without_denoising.logits)
    torch.testing.assert_close(predictions.boxes[:, :, 12:], without_denoising.boxes)
    differs = (predictions.logits != perturbed_predictions.logits).any(-1).any(0).any(0)
    assert differs.nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_a_denoising_query_embeds_its_noised_label_and_box():
    model = small()
    torch.manual_seed(0)
    targets = [target([[5, 5, 40, 40], [10, 10, 60, 30]], [0, 2], SIZES[0]),
               target([[1, 2, 3, 4]], [1], SIZES[1]), target([], [], SIZES[2])]  # fmt: skip
    noised = dino.denoising_queries(dino.objects_of(targets), model.head.denoising, 3)
    queries, _ = model._denoising(noised, padded_levels())
    for image, count in enumerate((2, 1, 0)):
        for slot in range(noised.queries):
            if slot % 2 < count:
                expected = model.label_embedding.weight[noised.labels[image, slot]]
                assert torch.equal(queries.content[image, slot], expected)
                assert torch.equal(queries.boxes[image, slot], logit(noised.boxes[image, slot]))
            else:
                assert not queries.content[image, slot].any()
                assert not queries.boxes[image, slot].any()


# Losses.


class FixedTransformer(nn.Module):
    """Stands for a transformer: returns given predictions."""

    def __init__(self, selected, decoded):
        super().__init__()
        self.outputs = selected, decoded
        self.selection = SimpleNamespace(queries=lambda levels: selected.logits.shape[2])

    def forward(self, levels, denoising=None, mask=None):
        return self.outputs


def random_predictions(layers, images, queries):
    sides = torch.rand(layers, images, queries, 2) * 0.4 + 0.05
    centres = torch.rand(layers, images, queries, 2)
    return Predictions(torch.randn(layers, images, queries, 3), torch.cat([centres, sides], -1))


def corners_of(box):
    x, y, width, height = box
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def giou(one, other):
    one, other = corners_of(one), corners_of(other)
    hull = (max(one[2], other[2]) - min(one[0], other[0])) * (
        max(one[3], other[3]) - min(one[1], other[1])
    )
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    union = areas / (1 + iou(one, other))
    return iou(one, other) - (hull - union) / hull


def distance(one, other):
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def cheapest_assignment(logits, boxes, objects):
    """Return the query of each object in the assignment of least cost, by trying all."""

    def cost(query, label, box):
        change = focal(logits[query][label], True, 0.25, 2) - focal(
            logits[query][label], False, 0.25, 2
        )
        return 2 * change + 5 * distance(boxes[query], box) - 2 * giou(boxes[query], box)

    assignments = itertools.permutations(range(len(logits)), len(objects))
    return min(
        assignments,
        key=lambda queries: sum(cost(query, *o) for query, o in zip(queries, objects, strict=True)),
    )


def losses_by_loop(logits, boxes, objects, assignment):
    """Return the weighted sums of class, L1 and GIoU losses over an image's queries."""
    objects_by_query = dict(zip(assignment, objects, strict=True))
    classes = sum(
        focal(value, query in objects_by_query and objects_by_query[query][0] == label, 0.25, 2)
        for query, values in enumerate(logits)
        for label, value in enumerate(values)
    )
    l1 = sum(distance(boxes[query], box) for query, (_, box) in objects_by_query.items())
    overlap = sum(1 - giou(boxes[query], box) for query, (_, box) in objects_by_query.items())
    return torch.tensor([1 * classes, 5 * l1, 2 * overlap])


def detector_with_fixed_predictions():
    """Return a detector of given random predictions, its batch, and objects as fractions."""
    model = small(denoising=4)  # two groups of 2 + 2
    torch.manual_seed(5)
    images = torch.rand(3, 3, 64, 64)
    boxes = [[[4, 4, 30, 40], [20, 10, 50, 48]], [[0, 0, 32, 32]], []]
    sizes = [(48, 60), (64, 64), (33, 32)]
    labels = [[1, 2], [0], []]
    targets = [target(b, x, size) for b, x, size in zip(boxes, labels, sizes, strict=True)]
    objects = [
        [
            (label, [(x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h])
            for (x1, y1, x2, y2), label in zip(b, x, strict=True)
        ]
        for b, x, (h, w) in zip(boxes, labels, sizes, strict=True)
    ]
    selected, decoded = random_predictions(1, 3, 4), random_predictions(2, 3, 8 + 4)
    model.transformer = FixedTransformer(selected, decoded)
    return model, images, targets, objects


def test_losses_equal_a_loop():
    model, images, targets, objects = detector_with_fixed_predictions()
    selected, decoded = model.transformer.outputs
    totals = {"selection": 0, "decoder": 0, "denoising": 0}
    for image, image_objects in enumerate(objects):
        sets = [("selection", selected, 0, 0)] + [("decoder", decoded, i, 8) for i in range(2)]
        for name, predictions, layer, first in sets:
            logits = predictions.logits[layer, image, first:].tolist()
            boxes = predictions.boxes[layer, image, first:].tolist()
            assignment = cheapest_assignment(logits, boxes, image_objects)
            totals[name] += losses_by_loop(logits, boxes, image_objects, assignment)
        for layer, group in itertools.product(range(2), range(2)):
            of_group = slice(group * 4, group * 4 + 4)  # positive 0 and 1, negative 2 and 3
            logits = decoded.logits[layer, image, of_group].tolist()
            boxes = decoded.boxes[layer, image, of_group].tolist()
            totals["denoising"] += losses_by_loop(
                logits, boxes, image_objects, range(len(image_objects))
            )
    losses = model(images, targets)
    assert len(losses) == 9
    for name, total in totals.items():
        actual = torch.stack([losses[f"{name}_{kind}"] for kind in ("classes", "l1", "giou")])
        groups = 2 if name == "denoising" else 1
        torch.testing.assert_close(actual, total / (3 * groups), atol=1e-4, rtol=1e-4)


def test_losses_are_divided_by_the_mean_number_of_objects_over_ranks(monkeypatch):
    model, images, targets, _ = detector_with_fixed_predictions()
    single = model(images, targets)  # 3 objects
    for mean, divisor in ((6.0, 6), (0.25, 1)):
        counts = []

        def over_ranks(count, mean=mean, counts=counts):
            counts.append(float(count))
            return torch.tensor(mean)

        monkeypatch.setattr(dino, "mean_over_ranks", over_ranks)
        distributed = model(images, targets)
        assert counts == [3]
        for name in single:
            torch.testing.assert_close(distributed[name] * divisor, single[name] * 3)


def step(model, images, targets):
    model.train().zero_grad()
    losses = model(images, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    return losses


SOME = target([[4, 4, 40, 50], [10, 20, 60, 40]], [0, 2], (64, 60))
EMPTY = target([], [], (50, 64))


@pytest.mark.parametrize(
    "targets", [[SOME, SOME], [EMPTY, SOME], [EMPTY, EMPTY]], ids=["full", "one empty", "all empty"]
)
def test_every_parameter_has_a_gradient_for_any_batch(targets):
    model = small()
    losses = step(model, torch.randn(2, 3, 64, 64), targets)
    if not any(len(truth.labels) for truth in targets):
        assert not model.label_embedding.weight.grad.any()
        assert losses.pop("selection_classes") > 0
        assert losses.pop("decoder_classes") > 0
        assert not any(losses.values())
    else:
        assert all(loss > 0 for loss in losses.values())


def test_more_objects_than_queries_and_fewer_locations_than_queries_are_valid():
    boxes = [[x, 4, x + 8, 30] for x in range(0, 50, 5)]
    crowded = target(boxes, [1] * len(boxes), (64, 64))
    step(small(queries=3), torch.randn(2, 3, 64, 64), [crowded, SOME])
    assert 64 + 16 + 4 + 1 < 100
    model = small(queries=100, channels=64)  # GroupNorm needs two values per group
    step(model, torch.randn(2, 3, 64, 64), [crowded, SOME])
    (detections,) = model.eval().predict(torch.randn(1, 3, 64, 64), [(64, 60)])
    assert len(detections.boxes) == 85 * 3


def test_losses_under_autocast_are_float32_with_finite_gradients():
    model = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(torch.randn(2, 3, 64, 64), [SOME, EMPTY])
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


# Predictions.


def test_detections_are_the_best_pairs_of_query_and_class():
    model = small(keep=5)
    selected, decoded = random_predictions(1, 2, 4), random_predictions(2, 2, 4)
    model.transformer = FixedTransformer(selected, decoded)
    sizes = [(40, 60), (64, 33)]
    detections = model.eval().predict(torch.zeros(2, 3, 64, 64), sizes)
    for image, (height, width) in enumerate(sizes):
        pairs = sorted(
            ((float(decoded.logits[1, image, q, c]), q, c) for q in range(4) for c in range(3)),
            reverse=True,
        )[:5]
        assert len({query for _, query, _ in pairs}) < 5  # a box with two classes
        assert detections[image].labels.tolist() == [label for *_, label in pairs]
        for rank, (value, query, _) in enumerate(pairs):
            assert math.isclose(
                detections[image].scores[rank], 1 / (1 + math.exp(-value)), abs_tol=1e-6
            )
            x1, y1, x2, y2 = corners_of(decoded.boxes[1, image, query].tolist())
            clipped = [
                max(x1, 0) * width,
                max(y1, 0) * height,
                min(x2, 1) * width,
                min(y2, 1) * height,
            ]
            torch.testing.assert_close(detections[image].boxes[rank], torch.tensor(clipped))


@torch.no_grad()
def test_detections_of_an_image_are_independent_of_the_batch():
    model = small().eval()
    images, sizes = torch.randn(3, 3, 64, 96), [(64, 96), (40, 70), (33, 96)]
    batched = model.predict(images, sizes)
    for i, size in enumerate(sizes):
        (single,) = model.predict(images[i : i + 1], [size])
        torch.testing.assert_close(single.scores, batched[i].scores, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(single.boxes, batched[i].boxes, atol=1e-3, rtol=1e-4)
        assert torch.equal(single.labels, batched[i].labels)
        assert (single.boxes >= 0).all()
        assert (single.boxes[:, 0::2] <= size[1]).all()
        assert (single.boxes[:, 1::2] <= size[0]).all()
        assert single.scores.equal(single.scores.sort(descending=True).values)


TRAINABLE = {"channels": 64, "feedforward": 128, "queries": 30, "points": 4, "denoising": 20}


def test_a_few_steps_lower_the_loss():
    images, targets = scenes(2, 64)
    first, *_, last = train(untrained(**TRAINABLE), images, targets, steps=12, lr=1e-3)
    assert last < 0.8 * first


@pytest.mark.slow
def test_overfits_eight_images():
    images, targets = scenes(8, 64)
    images = F.pad(images, (0, 32))  # each image is two thirds of what the model sees
    model = untrained(**TRAINABLE)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [110])
    for _ in range(150):
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
    assert box_ap(model, images, targets) > 0.9
