"""Stages of Mask R-CNN and Cascade Mask R-CNN: refined boxes, losses, combined predictions."""

import math

import pytest
import torch
from torch import nn

from smt.detection import two_stage
from smt.detection.boxes import clip
from smt.detection.mask_loss import mask_loss, mask_targets
from smt.detection.pooling import by_image, pool
from smt.detection.roi_heads import box_losses
from tests.helpers.two_stage_scenes import batch, decode, small

KINDS = ("mask_rcnn", "cascade_mask_rcnn")
CLASSES = 3


class RandomHead(nn.Module):
    """Stands for a head: returns random values, and records them and its input."""

    def __init__(self, *shapes):
        super().__init__()
        self.shapes = shapes

    def forward(self, pooled):
        self.pooled = pooled
        self.outputs = [
            torch.randn(len(pooled), *shape, requires_grad=True) for shape in self.shapes
        ]
        return self.outputs[0] if len(self.outputs) == 1 else self.outputs


def with_random_heads(name, **changes):
    """Return a detector whose box and mask heads return random values."""
    model = small(name, classes=CLASSES, **changes)
    for i in range(len(model.head.stages)):
        model.box_heads[i] = RandomHead((CLASSES + 1,), (CLASSES, 4))
        model.mask_heads[i] = RandomHead((CLASSES, 28, 28))
    return model


def record_stages(monkeypatch, model, images, targets):
    """Return the losses of a step, and for each stage and image its proposals and regions."""
    calls, sample = [], two_stage.sample_regions

    def record(proposals, targets, matching, sampling, classes):
        regions = sample(proposals, targets, matching, sampling, classes)
        calls.append([(*pair, matching) for pair in zip(proposals, regions, strict=True)])
        return regions

    monkeypatch.setattr(two_stage, "sample_regions", record)
    return model(images, targets), calls


def likeliest_class(logits):
    """Return the class of the highest logit, background left aside."""
    return logits[:CLASSES].index(max(logits[:CLASSES]))


def refine_and_clip(box, offsets, stage, size):
    """Return a box refined by a stage, clipped to an image of `size`."""
    deviations = stage.deviations
    unclipped = decode(box, [a * b for a, b in zip(offsets, deviations, strict=True)])
    return clip(torch.tensor(unclipped), size).tolist()


def test_the_next_stage_samples_boxes_refined_by_the_previous_one(monkeypatch):
    images, targets = batch()
    model = with_random_heads("cascade_mask_rcnn")
    _, stages = record_stages(monkeypatch, model, images, targets)
    assert len(stages) == 3
    ground_truths = 0
    for i, spec in enumerate(model.head.stages[:-1]):
        logits, offsets = (output.tolist() for output in model.box_heads[i].outputs)
        row = 0
        for image, (_, regions, matching) in enumerate(stages[i]):
            assert matching == spec.matching
            expected = []
            for box, label, is_ground_truth in zip(
                regions.boxes.tolist(),
                regions.labels.tolist(),
                regions.is_ground_truth,
                strict=True,
            ):
                if not is_ground_truth:
                    # Offsets of the object's class, or of the likeliest class for background.
                    refined_class = likeliest_class(logits[row]) if label == CLASSES else label
                    size = targets[image].size
                    expected.append(refine_and_clip(box, offsets[row][refined_class], spec, size))
                ground_truths += bool(is_ground_truth)
                row += 1
            next_proposals = stages[i + 1][image][0]
            proposals = next_proposals.boxes[next_proposals.usable]
            assert not proposals.requires_grad
            assert torch.allclose(proposals, torch.tensor(expected), atol=1e-3)
        assert row == len(logits)
    assert ground_truths > 0


@pytest.mark.parametrize("name", KINDS)
def test_losses_of_a_stage_have_its_own_regions_and_weight(monkeypatch, name):
    images, targets = batch()
    model = with_random_heads(name)
    losses, stages = record_stages(monkeypatch, model, images, targets)
    levels = model.neck(model.backbone(images))[:4]
    expected = {"rpn_class", "rpn_box"}
    for i, spec in enumerate(model.head.stages):
        regions = [image_regions[1] for image_regions in stages[i]]
        positive_boxes = [
            image_regions.boxes[: len(image_regions.objects)] for image_regions in regions
        ]
        for random_head, boxes, resolution in (
            (model.box_heads[i], [image_regions.boxes for image_regions in regions], 7),
            (model.mask_heads[i], positive_boxes, 14),
        ):
            pooled = pool(levels, (4, 8, 16, 32), by_image(boxes), resolution)
            assert torch.allclose(random_head.pooled, pooled, atol=1e-5)
        stage_losses = box_losses(
            *model.box_heads[i].outputs,
            regions=regions,
            targets=targets,
            spec=model.head.box,
            deviations=spec.deviations,
        )
        masks = [
            mask_targets(target.masks, image_regions.objects, boxes, 28)
            for target, image_regions, boxes in zip(targets, regions, positive_boxes, strict=True)
        ]
        labels = torch.cat(
            [
                target.labels[image_regions.objects]
                for target, image_regions in zip(targets, regions, strict=True)
            ]
        )
        stage_losses["mask"] = mask_loss(model.mask_heads[i].outputs[0], labels, torch.cat(masks))
        weight = (1, 0.5, 0.25)[i]
        for loss, value in stage_losses.items():
            key = f"stage{i}_{loss}" if name == "cascade_mask_rcnn" else loss
            assert losses[key].item() == pytest.approx(weight * value.item(), rel=1e-5)
            expected.add(key)
    assert set(losses) == expected


@pytest.mark.parametrize("name", KINDS)
def test_proposals_have_separate_selections_for_training_and_test(monkeypatch, name):
    images, targets = batch()
    model, selections = small(name), []
    propose = model.rpn.propose

    def record(predictions, sizes, selection):
        selections.append(selection)
        assert sizes == [target.size for target in targets]
        return propose(predictions, sizes, selection)

    monkeypatch.setattr(model.rpn, "propose", record)
    model(images, targets)
    with torch.no_grad():
        model.eval().predict(images, [target.size for target in targets])
    assert selections == [model.head.rpn.training, model.head.rpn.test]
    assert selections[0] != selections[1]


def detect_by_loop(model, proposals, size):
    """Return (score, label, box) of all predictions of an image, best first, without NMS.

    Takes the image's rows away from the recorded outputs; the next call reads the next image.
    """
    detections = []
    for box in proposals.tolist():
        logits = torch.stack([head.outputs[0][0] for head in model.box_heads])
        for spec, head in zip(model.head.stages[:-1], list(model.box_heads)[:-1], strict=True):
            offsets = head.outputs[1][0].tolist()
            box = refine_and_clip(
                box, offsets[likeliest_class(head.outputs[0][0].tolist())], spec, size
            )
        scores = [math.exp(value) for value in logits.mean(0).tolist()]
        for label in range(CLASSES):
            offsets = model.box_heads[-1].outputs[1][0, label].tolist()
            refined = refine_and_clip(box, offsets, model.head.stages[-1], size)
            detections.append((scores[label] / sum(scores), label, refined))
        for head in model.box_heads:
            head.outputs = [output[1:] for output in head.outputs]
    return sorted(detections, key=lambda detection: -detection[0])


@pytest.mark.parametrize("name", KINDS)
def test_predictions_average_scores_of_stages_and_have_boxes_of_the_last(monkeypatch, name):
    keep_all = {"before": 9, "nms": 1.0, "keep": 100, "score": 0.0}
    model = with_random_heads(name).eval()
    model.head = model.head.model_copy(update={"test": model.head.test.model_copy(update=keep_all)})
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
    for detections, boxes, size in zip(results, proposals, sizes, strict=True):
        expected = detect_by_loop(model, boxes, size)
        assert detections.labels.tolist() == [label for _, label, _ in expected]
        assert detections.scores.tolist() == pytest.approx(
            [score for score, *_ in expected], rel=1e-4
        )
        expected_boxes = torch.tensor([box for *_, box in expected]).view(-1, 4)
        assert torch.allclose(detections.boxes, expected_boxes, atol=1e-3)
        # A mask is the mean of the stages' probabilities for its class.
        assert detections.masks.shape == (len(expected), 28, 28)
        for index, (_, label, _) in enumerate(expected):
            logits = [head.outputs[0][start + index, label] for head in model.mask_heads]
            mean = sum(1 / (1 + (-x).exp()) for x in logits) / len(logits)
            assert torch.allclose(detections.masks[index], mean, atol=1e-6)
        start += len(expected)
    assert start == 9


@pytest.mark.parametrize("name", KINDS)
def test_low_scores_and_duplicates_are_removed(monkeypatch, name):
    model = with_random_heads(name).eval()
    monkeypatch.setattr(model.rpn, "propose", lambda *_: [torch.tensor([[3.0, 4, 30, 40]] * 2)])

    def fixed_outputs(pooled):
        # The classes have 0.9, 0.04 and 0.06 in the first box, 0.8, 0.1 and 0.1 in the second.
        logits = torch.tensor([[0.9, 0.04, 0.06, 1e-9], [0.8, 0.1, 0.1, 1e-9]]).log()
        return logits, torch.zeros(2, CLASSES, 4)

    for head in model.box_heads:
        monkeypatch.setattr(head, "forward", fixed_outputs)
    with torch.no_grad():
        (detections,) = model.predict(torch.randn(1, 3, 64, 64), [(64, 64)])
    # 0.04 is below the threshold; NMS keeps the better box of each class.
    assert detections.labels.tolist()[0] == 0 and set(detections.labels[1:].tolist()) == {1, 2}
    assert detections.scores.tolist() == pytest.approx([0.9, 0.1, 0.1])
