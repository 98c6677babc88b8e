"""What the stages of Mask R-CNN and Cascade Mask R-CNN hand on, learn and say together."""

import math

import pytest
import torch
from torch import nn

from smt.detection import two_stage
from smt.detection.boxes import clip
from smt.detection.mask_loss import mask_loss, mask_targets
from smt.detection.pooling import by_image, pool
from smt.detection.roi_heads import box_losses
from tests.helpers.two_stage_scenes import batch, decoded, small

KINDS = ("mask_rcnn", "cascade_mask_rcnn")
CLASSES = 3


class Noise(nn.Module):
    """Stands for a head: says something random, and remembers what, and of which regions."""

    def __init__(self, *shapes):
        super().__init__()
        self.shapes = shapes

    def forward(self, pooled):
        self.pooled = pooled
        self.said = [torch.randn(len(pooled), *shape, requires_grad=True) for shape in self.shapes]
        return self.said[0] if len(self.said) == 1 else self.said


def with_noise(name, **changes):
    """Return a detector whose box and mask heads say random things."""
    model = small(name, classes=CLASSES, **changes)
    for i in range(len(model.head.stages)):
        model.box_heads[i] = Noise((CLASSES + 1,), (CLASSES, 4))
        model.mask_heads[i] = Noise((CLASSES, 28, 28))
    return model


def recorded(monkeypatch, model, images, targets):
    """Return the losses of a step, and for each stage and image its proposals and regions."""
    calls, draw = [], two_stage.sample_regions

    def listening(proposals, targets, matching, sampling, classes):
        regions = draw(proposals, targets, matching, sampling, classes)
        calls.append([(*each, matching) for each in zip(proposals, regions, strict=True)])
        return regions

    monkeypatch.setattr(two_stage, "sample_regions", listening)
    return model(images, targets), calls


def likeliest(logits):
    """Return the class that is likeliest after background."""
    return logits[:CLASSES].index(max(logits[:CLASSES]))


def moved(box, offsets, stage, size):
    """Return a box as a stage moves it, cut to an image of `size`."""
    deviations = stage.deviations
    free = decoded(box, [a * b for a, b in zip(offsets, deviations, strict=True)])
    return clip(torch.tensor(free), size).tolist()


def test_the_next_stage_learns_of_regions_as_the_last_one_moved_them(monkeypatch):
    images, targets = batch()
    model = with_noise("cascade_mask_rcnn")
    _, stages = recorded(monkeypatch, model, images, targets)
    assert len(stages) == 3
    ground_truths = 0
    for i, spec in enumerate(model.head.stages[:-1]):
        logits, offsets = (each.tolist() for each in model.box_heads[i].said)
        row = 0
        for image, (_, regions, matching) in enumerate(stages[i]):
            assert matching == spec.matching
            expected = []
            for box, label, own in zip(
                regions.boxes.tolist(),
                regions.labels.tolist(),
                regions.is_ground_truth,
                strict=True,
            ):
                if not own:
                    # An object's class where it is known, or what is likeliest after background.
                    chosen = likeliest(logits[row]) if label == CLASSES else label
                    size = targets[image].size
                    expected.append(moved(box, offsets[row][chosen], spec, size))
                ground_truths += bool(own)
                row += 1
            proposed = stages[i + 1][image][0]
            proposals = proposed.boxes[proposed.usable]
            assert not proposals.requires_grad
            assert torch.allclose(proposals, torch.tensor(expected), atol=1e-3)
        assert row == len(logits)
    assert ground_truths > 0


@pytest.mark.parametrize("name", KINDS)
def test_losses_are_of_each_stages_own_regions_and_weighted(monkeypatch, name):
    images, targets = batch()
    model = with_noise(name)
    losses, stages = recorded(monkeypatch, model, images, targets)
    levels = model.neck(model.backbone(images))[:4]
    expected = {"rpn_class", "rpn_box"}
    for i, spec in enumerate(model.head.stages):
        regions = [each[1] for each in stages[i]]
        found = [each.boxes[: len(each.objects)] for each in regions]
        for stand_in, boxes, resolution in (
            (model.box_heads[i], [each.boxes for each in regions], 7),
            (model.mask_heads[i], found, 14),
        ):
            pooled = pool(levels, (4, 8, 16, 32), by_image(boxes), resolution)
            assert torch.allclose(stand_in.pooled, pooled, atol=1e-5)
        own = box_losses(
            *model.box_heads[i].said,
            regions=regions,
            targets=targets,
            spec=model.head.box,
            deviations=spec.deviations,
        )
        goals = [
            mask_targets(target.masks, each.objects, boxes, 28)
            for target, each, boxes in zip(targets, regions, found, strict=True)
        ]
        labels = torch.cat(
            [target.labels[each.objects] for target, each in zip(targets, regions, strict=True)]
        )
        own["mask"] = mask_loss(model.mask_heads[i].said[0], labels, torch.cat(goals))
        weight = (1, 0.5, 0.25)[i]
        for loss, value in own.items():
            key = f"stage{i}_{loss}" if name == "cascade_mask_rcnn" else loss
            assert losses[key].item() == pytest.approx(weight * value.item(), rel=1e-5)
            expected.add(key)
    assert set(losses) == expected


@pytest.mark.parametrize("name", KINDS)
def test_proposals_of_training_and_of_testing_are_selected_by_their_own_rules(monkeypatch, name):
    images, targets = batch()
    model, selections = small(name), []
    propose = model.rpn.propose

    def listening(predictions, sizes, selection):
        selections.append(selection)
        assert sizes == [each.size for each in targets]
        return propose(predictions, sizes, selection)

    monkeypatch.setattr(model.rpn, "propose", listening)
    model(images, targets)
    with torch.no_grad():
        model.eval().predict(images, [each.size for each in targets])
    assert selections == [model.head.rpn.training, model.head.rpn.test]
    assert selections[0] != selections[1]


def detected(model, proposals, size):
    """Return (score, label, box) of all that an image's noisy stages say, without suppression.

    Reads what heads said of the first rows, and takes these rows away.
    """
    found = []
    for box in proposals.tolist():
        logits = torch.stack([each.said[0][0] for each in model.box_heads])
        for spec, each in zip(model.head.stages[:-1], list(model.box_heads)[:-1], strict=True):
            offsets = each.said[1][0].tolist()
            box = moved(box, offsets[likeliest(each.said[0][0].tolist())], spec, size)
        scores = [math.exp(value) for value in logits.mean(0).tolist()]
        for label in range(CLASSES):
            offsets = model.box_heads[-1].said[1][0, label].tolist()
            last = moved(box, offsets, model.head.stages[-1], size)
            found.append((scores[label] / sum(scores), label, last))
        for each in model.box_heads:
            each.said = [said[1:] for said in each.said]
    return sorted(found, key=lambda each: -each[0])


@pytest.mark.parametrize("name", KINDS)
def test_predictions_are_the_mean_of_the_stages_at_boxes_of_the_last(monkeypatch, name):
    everything = {"before": 9, "nms": 1.0, "keep": 100, "score": 0.0}
    model = with_noise(name).eval()
    model.head = model.head.model_copy(
        update={"test": model.head.test.model_copy(update=everything)}
    )
    proposals = [
        torch.tensor([[3.0, 4, 30, 40], [20, 20, 60, 44]]),
        torch.empty(0, 4),
        torch.tensor([[0.0, 0, 25, 48]]),
    ]
    sizes = [(64, 64), (64, 64), (48, 50)]
    monkeypatch.setattr(model.rpn, "propose", lambda *_: proposals)
    with torch.no_grad():
        results = model.predict(torch.randn(3, 3, 64, 64), sizes)
    start = 0
    for found, boxes, size in zip(results, proposals, sizes, strict=True):
        expected = detected(model, boxes, size)
        assert found.labels.tolist() == [label for _, label, _ in expected]
        assert found.scores.tolist() == pytest.approx([score for score, *_ in expected], rel=1e-4)
        rows = torch.tensor([box for *_, box in expected]).view(-1, 4)
        assert torch.allclose(found.boxes, rows, atol=1e-3)
        # Each mask is the mean of what the stages' heads say of the box, for its class.
        assert found.masks.shape == (len(expected), 28, 28)
        for row, (_, label, _) in enumerate(expected):
            said = [each.said[0][start + row, label] for each in model.mask_heads]
            mean = sum(1 / (1 + (-each).exp()) for each in said) / len(said)
            assert torch.allclose(found.masks[row], mean, atol=1e-6)
        start += len(expected)
    assert start == 9


@pytest.mark.parametrize("name", KINDS)
def test_weak_predictions_and_doubles_are_no_detections(monkeypatch, name):
    model = with_noise(name).eval()
    monkeypatch.setattr(model.rpn, "propose", lambda *_: [torch.tensor([[3.0, 4, 30, 40]] * 2)])

    def says(pooled):
        # Of the first the classes have 0.9, 0.04 and 0.06, of the second 0.8, 0.1 and 0.1.
        logits = torch.tensor([[0.9, 0.04, 0.06, 1e-9], [0.8, 0.1, 0.1, 1e-9]]).log()
        return logits, torch.zeros(2, CLASSES, 4)

    for each in model.box_heads:
        monkeypatch.setattr(each, "forward", says)
    with torch.no_grad():
        (found,) = model.predict(torch.randn(1, 3, 64, 64), [(64, 64)])
    # 0.04 is too weak; of each class the weaker box goes.
    assert found.labels.tolist()[0] == 0 and set(found.labels[1:].tolist()) == {1, 2}
    assert found.scores.tolist() == pytest.approx([0.9, 0.1, 0.1])
