"""Sparse R-CNN against its definition, written out for one proposal and one object at a time."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from smt.config.heads import SetWeights
from smt.detection import sparse_rcnn
from smt.detection.sparse_rcnn import SparseRCNNDetector
from smt.models import profile
from tests.helpers.dense_scenes import (
    SmallBackbone,
    box_ap,
    focal,
    head,
    iou,
    on_meta,
    scenes,
    target,
    train,
)

SIZES = [(250, 190), (180, 224)]  # height, width; two images of a batch that is padded to PADDED
PADDED = (256, 224)
SMALL = {
    "channels": 16,
    "proposals": 6,
    "stages": 3,
    "heads": 4,
    "feedforward": 32,
    "dynamic_channels": 8,
}


def small(*, seed=0, classes=3, **changes):
    """Return a detector of few channels and stages, its boxes as different as after training."""
    torch.manual_seed(seed)
    model = SparseRCNNDetector(
        SmallBackbone(), head=head("sparse_rcnn", **SMALL | changes), classes=classes
    )
    with torch.no_grad():
        for stage in model.stages:
            stage.offsets.weight.mul_(0.5)
            stage.classes.weight.mul_(3)
    return model


def batch_of(objects):
    """Return images (2, 3, H, W), zero where they are padded, and targets of SIZES."""
    images = torch.zeros(2, 3, *PADDED)
    for image, (height, width) in zip(images, SIZES, strict=True):
        image[:, :height, :width] = torch.rand(3, height, width)
    return images, [
        target(boxes, labels, size) for (boxes, labels), size in zip(objects, SIZES, strict=True)
    ]


TWO_AND_ONE = [
    ([[10, 20, 100, 90], [30, 40, 180, 230]], [2, 0]),
    ([[100, 50, 220, 170]], [1]),
]
ONE_AND_NONE = [([[10, 20, 100, 90]], [2]), ([], [])]
NONE = [([], []), ([], [])]


# What stages pass on


def sampled(level, stride, box, resolution, samples):
    """Return the mean (C, R, R) of `samples` x `samples` points in each bin of one box."""
    height, width = level.shape[1:]

    def places(low, high):
        count = resolution * samples
        steps = (torch.arange(count) + 0.5) / count
        return (low + steps * (high - low)) / stride  # in cells of the level

    x, y = places(box[0], box[2]), places(box[1], box[3])
    near = ((y > -0.5) & (y < height + 0.5))[:, None] & ((x > -0.5) & (x < width + 0.5))
    y, x = torch.meshgrid(y, x, indexing="ij")
    grid = torch.stack([x / width, y / height], -1) * 2 - 1
    values = F.grid_sample(
        level[None], grid[None].float(), align_corners=False, padding_mode="border"
    )[0]
    return F.avg_pool2d(values * near, samples)


def moved(box, offsets, deviations):
    """Return the box that is `offsets` times `deviations` away from `box`."""
    dx, dy, dw, dh = (a * b for a, b in zip(offsets, deviations, strict=True))
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    width, height = (x2 - x1) * math.exp(dw), (y2 - y1) * math.exp(dh)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@pytest.fixture
def followed():
    """Return a detector, its images, and each stage's call of it: inputs and outputs."""
    model, calls, levels = small(channels=32, seed=3), [], []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, inputs, outputs: calls.append((inputs, outputs)))
    model.pyramid.register_forward_hook(lambda _, inputs, outputs: levels.extend(outputs))
    images, _ = batch_of(NONE)
    with torch.no_grad():
        predictions = model._refine(images, SIZES)
    return model, calls, levels, predictions


def test_every_stage_moves_the_boxes_of_the_one_before(followed):
    _, calls, _, predictions = followed
    boxes = [[[0, 0, width, height]] * 6 for height, width in SIZES]  # the image without padding
    for (_, (logits, offsets, _)), prediction in zip(calls, predictions, strict=True):
        assert torch.equal(prediction.logits, logits)
        for image in range(2):
            expected = [
                moved(box, offset, (0.5, 0.5, 1.0, 1.0))
                for box, offset in zip(boxes[image], offsets[image].tolist(), strict=True)
            ]
            assert torch.allclose(
                prediction.boxes[image], torch.tensor(expected), rtol=1e-4, atol=1e-2
            )
        boxes = prediction.boxes.tolist()
    assert predictions[-1].boxes.min() < 0  # they are not cut to the image on the way


def test_a_stage_sees_the_level_that_suits_its_boxes(followed):
    _, calls, levels, predictions = followed
    boxes = [[[0, 0, width, height]] * 6 for height, width in SIZES]
    used = set()
    for ((_, regions), _), prediction in zip(calls, predictions, strict=True):
        for row, region in enumerate(regions):
            image, proposal = divmod(row, 6)
            x1, y1, x2, y2 = box = boxes[image][proposal]
            side = math.sqrt((x2 - x1) * (y2 - y1))
            level = min(max(math.floor(math.log2(side / 56)), 0), 3)
            used.add(level)
            expected = sampled(levels[level][image], 4 * 2**level, box, 7, samples=2)
            assert torch.allclose(region, expected, atol=1e-4)
        boxes = prediction.boxes.tolist()
    assert len(used) > 2


def test_the_features_of_proposals_are_passed_on(followed):
    model, calls, _, _ = followed
    assert torch.equal(calls[0][0][0], model.proposal_features.expand(2, -1, -1))
    for (_, outputs), (inputs, _) in itertools.pairwise(calls):
        assert torch.equal(inputs[0], outputs[2])


def gradient(loss, parameter):
    """Return the largest gradient of `parameter`, 0 where it takes no part."""
    (found,) = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
    return 0.0 if found is None else float(found.abs().max())


def test_a_stages_boxes_teach_that_stage_alone():
    model = small()
    losses = model(*batch_of(TWO_AND_ONE))
    first, second = model.stages[0], model.stages[1]
    for name in ("box", "giou"):
        assert gradient(losses[f"stage1_{name}"], first.offsets.weight) == 0
        assert gradient(losses[f"stage1_{name}"], model.proposal_boxes) == 0
        assert gradient(losses[f"stage1_{name}"], second.offsets.weight) > 0
        assert gradient(losses[f"stage0_{name}"], first.offsets.weight) > 0
        assert gradient(losses[f"stage0_{name}"], model.proposal_boxes) > 0
        # The features of proposals are not cut off.
        assert gradient(losses[f"stage1_{name}"], first.interaction.generate.weight) > 0


# Losses


def giou(one, other):
    """Return the generalised IoU of two boxes (its paper's algorithm 1)."""
    hull = (max(one[2], other[2]) - min(one[0], other[0])) * (
        max(one[3], other[3]) - min(one[1], other[1])
    )
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)]
    overlap = iou(one, other) * sum(areas) / (1 + iou(one, other))
    return iou(one, other) - (hull - (sum(areas) - overlap)) / hull


def distance(one, other, size):
    """Return the L1 distance of two boxes as fractions of `size`."""
    height, width = size
    pairs = zip(one, other, (width, height, width, height), strict=True)
    return sum(abs(a - b) / side for a, b, side in pairs)


def prices(logits, boxes, each, spec):
    """Return what the matcher takes of each proposal (P lists) for every object."""

    def price(logit, box, real):
        classes = [focal(logit, there, spec.focal_alpha, spec.focal_gamma) for there in (1, 0)]
        return (
            spec.cost.classes * (classes[0] - classes[1])
            + spec.cost.l1 * distance(box, real, each.size)
            - spec.cost.giou * giou(box, real)
        )

    objects = list(zip(each.labels.tolist(), each.boxes.tolist(), strict=True))
    return [
        [price(row[label], box, real) for label, real in objects]
        for row, box in zip(logits, boxes, strict=True)
    ]


def best_pairs(table):
    """Return the proposal of every object of a table of prices, by trying all."""
    return min(
        itertools.permutations(range(len(table)), len(table[0])),
        key=lambda rows: sum(table[row][column] for column, row in enumerate(rows)),
    )


def losses_by_hand(prediction, targets, spec):
    """Return the three losses of a stage, not yet divided."""
    alpha, gamma = spec.focal_alpha, spec.focal_gamma
    sums = {"class": 0.0, "box": 0.0, "giou": 0.0}
    for image, each in enumerate(targets):
        logits = prediction.logits[image].double().tolist()
        boxes = prediction.boxes[image].double().tolist()
        chosen = best_pairs(prices(logits, boxes, each, spec))
        classes = dict(zip(chosen, each.labels.tolist(), strict=True))
        for row, label in itertools.product(range(len(boxes)), range(len(logits[0]))):
            loss = focal(logits[row][label], classes.get(row) == label, alpha, gamma)
            sums["class"] += spec.loss.classes * loss
        for row, real in zip(chosen, each.boxes.tolist(), strict=True):
            sums["box"] += spec.loss.l1 * distance(boxes[row], real, each.size)
            sums["giou"] += spec.loss.giou * (1 - giou(boxes[row], real))
    return sums


ODD = {
    "cost": SetWeights(classes=9, l1=2, giou=1),
    "loss": SetWeights(classes=4, l1=5, giou=6),
    "focal_alpha": 0.9,
    "focal_gamma": 0.5,
}
"""Weights of which no two are alike."""


@pytest.mark.parametrize("objects", [TWO_AND_ONE, ONE_AND_NONE, NONE])
@pytest.mark.parametrize("changes", [{}, ODD], ids=["paper", "odd"])
def test_losses_are_those_of_the_cheapest_pairs(objects, changes):
    model = small(seed=1, **changes)
    images, targets = batch_of(objects)
    with torch.no_grad():
        predictions = model._refine(images, SIZES)
        losses = model(images, targets)
    positives = max(sum(len(each.labels) for each in targets), 1)
    expected = {
        f"stage{stage}_{name}": loss / positives
        for stage, prediction in enumerate(predictions)
        for name, loss in losses_by_hand(prediction, targets, model.head).items()
    }
    assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("changes", [{}, ODD], ids=["paper", "odd"])
def test_pairs_are_priced_with_the_matchers_own_weights(changes):
    model = small(seed=1, **changes)
    images, targets = batch_of(TWO_AND_ONE)
    with torch.no_grad():
        prediction = model._refine(images, SIZES)[-1]
    found = model._costs(prediction, targets)
    for cost, logits, boxes, each in zip(
        found, prediction.logits.tolist(), prediction.boxes.tolist(), targets, strict=True
    ):
        expected = torch.tensor(prices(logits, boxes, each, model.head))
        assert torch.allclose(cost, expected, rtol=1e-4, atol=1e-4)


def test_more_objects_than_proposals_leave_some_without():
    boxes = [[10 * each, 20, 10 * each + 30, 60] for each in range(9)]
    losses = small()(*batch_of([(boxes, [0] * 9), ([], [])]))
    assert all(loss.isfinite() for loss in losses.values())


def test_losses_are_divided_by_the_mean_of_positives_over_processes(monkeypatch):
    model, (images, targets) = small(), batch_of(TWO_AND_ONE)
    counts = []

    def doubled(count):
        counts.append(int(count))
        return 2 * count.float()

    with torch.no_grad():
        alone = model(images, targets)
        monkeypatch.setattr(sparse_rcnn, "mean_over_ranks", doubled)
        among_others = model(images, targets)
    assert set(counts) == {3}
    for name, loss in alone.items():
        assert float(among_others[name]) == pytest.approx(float(loss) / 2)


@pytest.mark.parametrize("objects", [TWO_AND_ONE, ONE_AND_NONE, NONE])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_parameter_has_a_gradient_whatever_the_batch_holds(objects, precision):
    model = small()
    with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
        losses = model(*batch_of(objects))
    assert all(loss.dtype is torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model.stages[0].classes.weight.grad.abs().max() > 0


def test_a_learned_box_may_turn_inside_out():
    model = small()
    with torch.no_grad():
        model.proposal_boxes[0, 2] = -0.1
    losses = model(*batch_of(TWO_AND_ONE))
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("objects", [TWO_AND_ONE, NONE])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["a box", "a class", "the backbone"])
def test_a_model_gone_astray_has_a_loss_that_is_not_finite(objects, value, where):
    model = small()
    stage = model.stages[0]
    with torch.no_grad():
        {
            "a box": stage.offsets.bias,
            "a class": stage.classes.bias,
            "the backbone": model.backbone.stages[3][0].bias,
        }[where][0] = value
    assert not sum(model(*batch_of(objects)).values()).isfinite()


# Test


def test_the_best_pairs_of_proposal_and_class_are_kept_and_cut_to_the_image():
    model = small(seed=3, keep=10).eval()
    images, _ = batch_of(NONE)
    with torch.no_grad():
        found, last = model.predict(images, SIZES), model._refine(images, SIZES)[-1]
    outside = False
    for image, (height, width) in enumerate(SIZES):
        pairs = sorted(
            (
                (float(last.logits[image, row, label].sigmoid()), label, row)
                for row, label in itertools.product(range(6), range(3))
            ),
            reverse=True,
        )[:10]
        assert found[image].labels.tolist() == [label for _, label, _ in pairs]
        assert found[image].scores.tolist() == pytest.approx([score for score, _, _ in pairs])
        rows = [last.boxes[image, row].tolist() for _, _, row in pairs]
        cut = [
            [min(max(each, 0), limit) for each, limit in zip(row, (width, height) * 2, strict=True)]
            for row in rows
        ]
        outside |= cut != rows
        assert torch.allclose(found[image].boxes, torch.tensor(cut))
        assert len({row for _, _, row in pairs}) < 10  # one proposal may give several
    assert outside


def test_where_there_are_fewer_pairs_than_are_kept_all_are():
    images, _ = batch_of(NONE)
    with torch.no_grad():
        found = small().eval().predict(images, SIZES)
    assert [len(each.scores) for each in found] == [18, 18]


def test_an_image_does_not_depend_on_its_batch():
    model = small(seed=3).eval()
    images, _ = batch_of(NONE)
    with torch.no_grad():
        together = model.predict(images, SIZES)
        for image, size, found in zip(images, SIZES, together, strict=True):
            (alone,) = model.predict(image[None], [size])
            assert torch.equal(alone.labels, found.labels)
            assert torch.allclose(alone.scores, found.scores, atol=1e-5)
            assert torch.allclose(alone.boxes, found.boxes, atol=1e-2)


# Start and size


def test_every_proposal_starts_as_the_whole_image():
    torch.manual_seed(0)
    spec = head("sparse_rcnn", stages=1)
    model = SparseRCNNDetector(SmallBackbone(), head=spec, classes=3)
    assert torch.equal(model.proposal_boxes, torch.tensor([[0.5, 0.5, 1, 1]] * 300))
    features = model.proposal_features.detach()
    assert float(features.mean()) == pytest.approx(0, abs=0.02)
    assert float(features.std()) == pytest.approx(1, abs=0.02)


def test_parameters_to_the_last():
    model = on_meta(SparseRCNNDetector, "sparse_rcnn")
    everything = sum(each.numel() for each in model.parameters())
    parts = [sum(each.numel() for each in part.parameters()) for part in
             (model.backbone, model.pyramid)]  # fmt: skip
    assert everything == sum(parts) + 6 * 13_235_412 + 300 * (4 + 256)
    assert everything / 1e6 == pytest.approx(104.14, abs=0.005)


def test_macs_of_an_image_of_1280_by_800():
    model = on_meta(SparseRCNNDetector, "sparse_rcnn")
    images = torch.empty(1, 3, 800, 1280, device="meta")
    counts = profile.count_forward(model.backbone, images)
    with torch.no_grad():
        levels = model.backbone(images)
    counts += profile.count_forward(model.pyramid, levels)
    proposals = torch.empty(1, 300, 256, device="meta")
    regions = torch.empty(300, 256, 7, 7, device="meta")
    before = counts.attention
    for stage in model.stages:
        counts += profile.count_forward(stage, proposals, regions)
    assert counts.reported / 1e9 == pytest.approx(171.20, abs=0.005)
    assert counts.attention / 1e9 == pytest.approx(249.8, abs=0.05)
    assert (counts.attention - before) / 1e9 == pytest.approx(26.92, abs=0.005)


def learner():
    """Return a small detector as it starts."""
    torch.manual_seed(0)
    spec = head("sparse_rcnn", **SMALL | {"channels": 32, "proposals": 12, "feedforward": 64})
    return SparseRCNNDetector(SmallBackbone(), head=spec, classes=3)


def test_a_few_steps_lower_the_loss():
    images, targets = scenes(2, 64)
    first, *_, last = train(learner(), images, targets, steps=12, lr=2e-3)
    assert last < 0.8 * first


@pytest.mark.slow
def test_it_learns_eight_images_by_heart():
    model = learner()
    images, targets = scenes(8, 64)
    train(model, images, targets, steps=400, lr=2e-3)
    assert box_ap(model, images, targets) > 0.9
