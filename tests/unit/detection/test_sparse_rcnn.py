"""Sparse R-CNN against its definition, one proposal and one object at a time."""

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
    """Return a small detector whose boxes differ from each other as after training."""
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


# Inputs and outputs of stages


def roi_align_by_grid(level, stride, box, resolution, samples):
    """Return the mean (C, R, R) of `samples` x `samples` points in each bin of one box."""
    height, width = level.shape[1:]

    def coordinates(low, high):
        count = resolution * samples
        steps = (torch.arange(count) + 0.5) / count
        return (low + steps * (high - low)) / stride  # in cells of the level

    x, y = coordinates(box[0], box[2]), coordinates(box[1], box[3])
    inside = ((y > -0.5) & (y < height + 0.5))[:, None] & ((x > -0.5) & (x < width + 0.5))
    y, x = torch.meshgrid(y, x, indexing="ij")
    grid = torch.stack([x / width, y / height], -1) * 2 - 1
    values = F.grid_sample(
        level[None], grid[None].float(), align_corners=False, padding_mode="border"
    )[0]
    return F.avg_pool2d(values * inside, samples)


def refine(box, offsets, deviations):
    """Return `box` refined by `offsets` times `deviations`."""
    dx, dy, dw, dh = (a * b for a, b in zip(offsets, deviations, strict=True))
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    width, height = (x2 - x1) * math.exp(dw), (y2 - y1) * math.exp(dh)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@pytest.fixture
def recorded():
    """Return a detector, inputs and outputs of its stages, its levels and predictions."""
    model, calls, levels = small(channels=32, seed=3), [], []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, inputs, outputs: calls.append((inputs, outputs)))
    model.pyramid.register_forward_hook(lambda _, inputs, outputs: levels.extend(outputs))
    images, _ = batch_of(NONE)
    with torch.no_grad():
        predictions = model._refine(images, SIZES)
    return model, calls, levels, predictions


def test_every_stage_refines_the_boxes_of_the_previous_one(recorded):
    _, calls, _, predictions = recorded
    boxes = [[[0, 0, width, height]] * 6 for height, width in SIZES]  # the image without padding
    for (_, (logits, offsets, _)), prediction in zip(calls, predictions, strict=True):
        assert torch.equal(prediction.logits, logits)
        for image in range(2):
            expected = [
                refine(box, offset, (0.5, 0.5, 1.0, 1.0))
                for box, offset in zip(boxes[image], offsets[image].tolist(), strict=True)
            ]
            assert torch.allclose(
                prediction.boxes[image], torch.tensor(expected), rtol=1e-4, atol=1e-2
            )
        boxes = prediction.boxes.tolist()
    assert predictions[-1].boxes.min() < 0  # boxes are not clipped between stages


def test_regions_are_pooled_from_the_level_of_the_box_size(recorded):
    _, calls, levels, predictions = recorded
    boxes = [[[0, 0, width, height]] * 6 for height, width in SIZES]
    levels_used = set()
    for ((_, regions), _), prediction in zip(calls, predictions, strict=True):
        for index, region in enumerate(regions):
            image, proposal = divmod(index, 6)
            x1, y1, x2, y2 = box = boxes[image][proposal]
            side = math.sqrt((x2 - x1) * (y2 - y1))
            level = min(max(math.floor(math.log2(side / 56)), 0), 3)
            levels_used.add(level)
            expected = roi_align_by_grid(levels[level][image], 4 * 2**level, box, 7, samples=2)
            assert torch.allclose(region, expected, atol=1e-4)
        boxes = prediction.boxes.tolist()
    assert len(levels_used) > 2


def test_proposal_features_are_passed_to_the_next_stage(recorded):
    model, calls, _, _ = recorded
    assert torch.equal(calls[0][0][0], model.proposal_features.expand(2, -1, -1))
    for (_, outputs), (inputs, _) in itertools.pairwise(calls):
        assert torch.equal(inputs[0], outputs[2])


def gradient(loss, parameter):
    """Return the largest absolute gradient of `parameter`, 0 if the loss does not use it."""
    (values,) = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
    return 0.0 if values is None else float(values.abs().max())


def test_boxes_are_detached_between_stages():
    model = small()
    losses = model(*batch_of(TWO_AND_ONE))
    first, second = model.stages[0], model.stages[1]
    for name in ("box", "giou"):
        assert gradient(losses[f"stage1_{name}"], first.offsets.weight) == 0
        assert gradient(losses[f"stage1_{name}"], model.proposal_boxes) == 0
        assert gradient(losses[f"stage1_{name}"], second.offsets.weight) > 0
        assert gradient(losses[f"stage0_{name}"], first.offsets.weight) > 0
        assert gradient(losses[f"stage0_{name}"], model.proposal_boxes) > 0
        # Proposal features are not detached.
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


def matching_costs(logits, boxes, truth, spec):
    """Return the matching costs: for each of P proposals a list over the objects."""

    def cost(logit, box, object_box):
        classes = [
            focal(logit, is_positive, spec.focal_alpha, spec.focal_gamma) for is_positive in (1, 0)
        ]
        return (
            spec.cost.classes * (classes[0] - classes[1])
            + spec.cost.l1 * distance(box, object_box, truth.size)
            - spec.cost.giou * giou(box, object_box)
        )

    objects = list(zip(truth.labels.tolist(), truth.boxes.tolist(), strict=True))
    return [
        [cost(proposal_logits[label], box, object_box) for label, object_box in objects]
        for proposal_logits, box in zip(logits, boxes, strict=True)
    ]


def cheapest_assignment(table):
    """Return the proposal of each object in the assignment of least cost, by trying all."""
    return min(
        itertools.permutations(range(len(table)), len(table[0])),
        key=lambda assignment: sum(
            table[proposal][object_index] for object_index, proposal in enumerate(assignment)
        ),
    )


def losses_by_hand(prediction, targets, spec):
    """Return the sums of the three losses of a stage."""
    alpha, gamma = spec.focal_alpha, spec.focal_gamma
    sums = {"class": 0.0, "box": 0.0, "giou": 0.0}
    for image, truth in enumerate(targets):
        logits = prediction.logits[image].double().tolist()
        boxes = prediction.boxes[image].double().tolist()
        assignment = cheapest_assignment(matching_costs(logits, boxes, truth, spec))
        classes = dict(zip(assignment, truth.labels.tolist(), strict=True))
        for proposal, label in itertools.product(range(len(boxes)), range(len(logits[0]))):
            loss = focal(logits[proposal][label], classes.get(proposal) == label, alpha, gamma)
            sums["class"] += spec.loss.classes * loss
        for proposal, object_box in zip(assignment, truth.boxes.tolist(), strict=True):
            sums["box"] += spec.loss.l1 * distance(boxes[proposal], object_box, truth.size)
            sums["giou"] += spec.loss.giou * (1 - giou(boxes[proposal], object_box))
    return sums


DISTINCT_WEIGHTS = {
    "cost": SetWeights(classes=9, l1=2, giou=1),
    "loss": SetWeights(classes=4, l1=5, giou=6),
    "focal_alpha": 0.9,
    "focal_gamma": 0.5,
}
"""Weights that are all different."""


@pytest.mark.parametrize("objects", [TWO_AND_ONE, ONE_AND_NONE, NONE])
@pytest.mark.parametrize("changes", [{}, DISTINCT_WEIGHTS], ids=["paper", "distinct"])
def test_losses_equal_those_of_the_cheapest_assignment(objects, changes):
    model = small(seed=1, **changes)
    images, targets = batch_of(objects)
    with torch.no_grad():
        predictions = model._refine(images, SIZES)
        losses = model(images, targets)
    positives = max(sum(len(truth.labels) for truth in targets), 1)
    expected = {
        f"stage{stage}_{name}": loss / positives
        for stage, prediction in enumerate(predictions)
        for name, loss in losses_by_hand(prediction, targets, model.head).items()
    }
    assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("changes", [{}, DISTINCT_WEIGHTS], ids=["paper", "distinct"])
def test_matching_costs_have_the_weights_of_the_matcher(changes):
    model = small(seed=1, **changes)
    images, targets = batch_of(TWO_AND_ONE)
    with torch.no_grad():
        prediction = model._refine(images, SIZES)[-1]
    costs = model._costs(prediction, targets)
    for cost, logits, boxes, truth in zip(
        costs, prediction.logits.tolist(), prediction.boxes.tolist(), targets, strict=True
    ):
        expected = torch.tensor(matching_costs(logits, boxes, truth, model.head))
        assert torch.allclose(cost, expected, rtol=1e-4, atol=1e-4)


def test_losses_are_finite_with_more_objects_than_proposals():
    boxes = [[10 * column, 20, 10 * column + 30, 60] for column in range(9)]
    losses = small()(*batch_of([(boxes, [0] * 9), ([], [])]))
    assert all(loss.isfinite() for loss in losses.values())


def test_losses_are_divided_by_the_mean_number_of_objects_over_ranks(monkeypatch):
    model, (images, targets) = small(), batch_of(TWO_AND_ONE)
    counts = []

    def doubled(count):
        counts.append(int(count))
        return 2 * count.float()

    with torch.no_grad():
        single = model(images, targets)
        monkeypatch.setattr(sparse_rcnn, "mean_over_ranks", doubled)
        distributed = model(images, targets)
    assert set(counts) == {3}
    for name, loss in single.items():
        assert float(distributed[name]) == pytest.approx(float(loss) / 2)


@pytest.mark.parametrize("objects", [TWO_AND_ONE, ONE_AND_NONE, NONE])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_parameter_has_a_gradient_for_any_batch(objects, precision):
    model = small()
    with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
        losses = model(*batch_of(objects))
    assert all(loss.dtype is torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model.stages[0].classes.weight.grad.abs().max() > 0


def test_losses_are_finite_with_an_inverted_proposal_box():
    model = small()
    with torch.no_grad():
        model.proposal_boxes[0, 2] = -0.1
    losses = model(*batch_of(TWO_AND_ONE))
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("objects", [TWO_AND_ONE, NONE])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["a box", "a class", "the backbone"])
def test_the_loss_of_a_diverged_model_is_not_finite(objects, value, where):
    model = small()
    stage = model.stages[0]
    with torch.no_grad():
        {
            "a box": stage.offsets.bias,
            "a class": stage.classes.bias,
            "the backbone": model.backbone.stages[3][0].bias,
        }[where][0] = value
    assert not sum(model(*batch_of(objects)).values()).isfinite()


# Predictions


def test_detections_are_the_best_pairs_of_proposal_and_class_clipped_to_the_image():
    model = small(seed=3, keep=10).eval()
    images, _ = batch_of(NONE)
    with torch.no_grad():
        detections, last = model.predict(images, SIZES), model._refine(images, SIZES)[-1]
    any_clipped = False
    for image, (height, width) in enumerate(SIZES):
        pairs = sorted(
            (
                (float(last.logits[image, proposal, label].sigmoid()), label, proposal)
                for proposal, label in itertools.product(range(6), range(3))
            ),
            reverse=True,
        )[:10]
        assert detections[image].labels.tolist() == [label for _, label, _ in pairs]
        assert detections[image].scores.tolist() == pytest.approx([score for score, _, _ in pairs])
        boxes = [last.boxes[image, proposal].tolist() for _, _, proposal in pairs]
        clipped = [
            [min(max(side, 0), limit) for side, limit in zip(box, (width, height) * 2, strict=True)]
            for box in boxes
        ]
        any_clipped |= clipped != boxes
        assert torch.allclose(detections[image].boxes, torch.tensor(clipped))
        assert len({proposal for _, _, proposal in pairs}) < 10  # several classes of a proposal
    assert any_clipped


def test_all_pairs_are_detections_if_fewer_than_the_limit():
    images, _ = batch_of(NONE)
    with torch.no_grad():
        predictions = small().eval().predict(images, SIZES)
    assert [len(detections.scores) for detections in predictions] == [18, 18]


def test_detections_of_an_image_are_independent_of_the_batch():
    model = small(seed=3).eval()
    images, _ = batch_of(NONE)
    with torch.no_grad():
        batched = model.predict(images, SIZES)
        for image, size, detections in zip(images, SIZES, batched, strict=True):
            (single,) = model.predict(image[None], [size])
            assert torch.equal(single.labels, detections.labels)
            assert torch.allclose(single.scores, detections.scores, atol=1e-5)
            assert torch.allclose(single.boxes, detections.boxes, atol=1e-2)


# Initial state and size


def test_initial_proposals_are_the_whole_image():
    torch.manual_seed(0)
    spec = head("sparse_rcnn", stages=1)
    model = SparseRCNNDetector(SmallBackbone(), head=spec, classes=3)
    assert torch.equal(model.proposal_boxes, torch.tensor([[0.5, 0.5, 1, 1]] * 300))
    features = model.proposal_features.detach()
    assert float(features.mean()) == pytest.approx(0, abs=0.02)
    assert float(features.std()) == pytest.approx(1, abs=0.02)


def test_parameter_count_by_hand():
    model = on_meta(SparseRCNNDetector, "sparse_rcnn")
    total = sum(parameter.numel() for parameter in model.parameters())
    parts = [sum(parameter.numel() for parameter in part.parameters()) for part in
             (model.backbone, model.pyramid)]  # fmt: skip
    assert total == sum(parts) + 6 * 13_235_412 + 300 * (4 + 256)
    assert total / 1e6 == pytest.approx(104.14, abs=0.005)


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


def untrained():
    """Return a small untrained detector."""
    torch.manual_seed(0)
    spec = head("sparse_rcnn", **SMALL | {"channels": 32, "proposals": 12, "feedforward": 64})
    return SparseRCNNDetector(SmallBackbone(), head=spec, classes=3)


def test_a_few_steps_lower_the_loss():
    images, targets = scenes(2, 64)
    first, *_, last = train(untrained(), images, targets, steps=12, lr=2e-3)
    assert last < 0.8 * first


@pytest.mark.slow
def test_overfits_eight_images():
    model = untrained()
    images, targets = scenes(8, 64)
    train(model, images, targets, steps=400, lr=2e-3)
    assert box_ap(model, images, targets) > 0.9
