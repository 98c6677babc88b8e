"""Helpers of tests of two-stage detectors: scenes with masks, small detectors, definitions."""

import contextlib
import io
import math

import numpy as np
import torch
from faster_coco_eval import COCO, mask
from PIL import Image, ImageDraw

from smt.config.heads import Sampling
from smt.detection.matching import BACKGROUND, LEFT_OUT
from smt.detection.paste import paste
from smt.detection.structures import Target
from smt.detection.two_stage import TwoStageDetector
from smt.models.pyramid import Pyramid
from tests.helpers.dense_scenes import SmallBackbone, coco_ap, corners, head, iou
from tests.helpers.params import project_at


def small(name, *, classes=3, seed=0, boxes=64, spread=0.0, **changes):
    """Return a detector of few channels; `spread` is the deviation of its last layers' weights."""
    spec = head(name)
    rpn = spec.rpn.model_copy(
        update={
            "training": spec.rpn.training.model_copy(update={"before": 200, "keep": 100}),
            "test": spec.rpn.test.model_copy(update={"before": 100, "keep": 50}),
        }
    )
    changes = {
        "channels": 32,
        "rpn": rpn,
        "sampling": Sampling(boxes=boxes, positive=0.25),
        "box": spec.box.model_copy(
            update={"width": 64, "convolutions": min(spec.box.convolutions, 1)}
        ),
        "mask": spec.mask.model_copy(update={"convolutions": 1}),
        **changes,
    }
    torch.manual_seed(seed)
    model = TwoStageDetector(SmallBackbone(), head=spec.model_copy(update=changes), classes=classes)
    if spread:
        with torch.no_grad():
            model.rpn.objectness.weight.normal_(std=spread)
            for box_head in model.box_heads:
                box_head.classifier.weight.normal_(std=spread)
                box_head.regression.weight.normal_(std=spread)
    return model


def on_meta(name, backbone="smt_small"):
    """Return the paper's detector of 80 classes, on the meta device."""
    model = project_at("paper").models[backbone]
    with torch.device("meta"):
        return TwoStageDetector(Pyramid(model, 0.2), head=head(name), classes=80).eval()


def scene(objects, size):
    """Return a target of objects (label, box) whose masks fill their boxes."""
    masks = torch.zeros(len(objects), *size, dtype=torch.bool)
    for object_mask, (_, (x1, y1, x2, y2)) in zip(masks, objects, strict=True):
        object_mask[y1:y2, x1:x2] = True
    boxes = torch.tensor([box for _, box in objects], dtype=torch.float32).view(-1, 4)
    labels = torch.tensor([label for label, _ in objects], dtype=torch.int64)
    return Target(boxes, labels, size, masks)


def scenes(count, side, seed=0):
    """Return images (count, 3, side, side) of discs, squares and triangles, and their targets."""
    random = np.random.default_rng(seed)
    images, targets = [], []
    for _ in range(count):
        image = Image.fromarray(random.integers(0, 60, (side, side, 3), dtype=np.uint8))
        boxes, labels, masks = [], [], []
        for corner in random.permutation(4)[: random.integers(1, 4)]:  # at most one per quadrant
            size = int(random.integers(side // 4, side // 2 - 4))
            x, y = (int(index) * side // 2 + 2 for index in divmod(corner, 2))
            labels.append(int(random.integers(3)))
            shape = Image.new("1", (side, side))
            draw_shape(ImageDraw.Draw(shape), labels[-1], (x, y, x + size - 1, y + size - 1))
            image.paste(((230, 60, 60), (60, 230, 60), (60, 60, 230))[labels[-1]], mask=shape)
            masks.append(torch.from_numpy(np.array(shape)))
            boxes.append([x, y, x + size, y + size])
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1)
        targets.append(
            Target(
                torch.tensor(boxes).float(), torch.tensor(labels), (side, side), torch.stack(masks)
            )
        )
    return torch.stack(images), targets


def draw_shape(canvas, label, box):
    x1, y1, x2, y2 = box
    if label == 0:
        canvas.ellipse(box, fill=1)
    elif label == 1:
        canvas.rectangle(box, fill=1)
    else:
        canvas.polygon([(x1, y2), (x2, y2), ((x1 + x2) / 2, y1)], fill=1)


def box_and_mask_ap(model, images, targets):
    """Return COCO's box AP and mask AP, in [0, 1]."""
    model.eval()
    with torch.no_grad():
        predictions = model.predict(images, [target.size for target in targets])
    truth = {
        "images": [
            {"id": image, "height": target.size[0], "width": target.size[1]}
            for image, target in enumerate(targets)
        ],
        "categories": [{"id": label, "name": str(label)} for label in range(3)],
        "annotations": [
            {"image_id": image, "category_id": int(label), "bbox": corners(box),
             "segmentation": encode_mask(pixels), "area": int(pixels.sum()), "iscrowd": 0}
            for image, target in enumerate(targets)
            for box, label, pixels in zip(
                target.boxes.tolist(), target.labels, target.masks, strict=True
            )
        ],
    }  # fmt: skip
    for number, annotation in enumerate(truth["annotations"], 1):
        annotation["id"] = number
    results = [
        {"image_id": image, "category_id": int(label), "bbox": corners(box),
         "segmentation": encode_mask(pixels), "score": float(score)}
        for image, (prediction, target) in enumerate(zip(predictions, targets, strict=True))
        for box, label, pixels, score in zip(
            prediction.boxes.tolist(), prediction.labels,
            paste(prediction.masks, prediction.boxes, target.size, 0.5), prediction.scores,
            strict=True,
        )
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(truth)
        return [coco_ap(coco, coco.loadRes(results), kind) for kind in ("bbox", "segm")]


def encode_mask(pixels):
    return mask.encode(np.asfortranarray(pixels.numpy().astype(np.uint8)))


def match_by_loop(overlaps, matching):
    """Return the object matched to each box, by loops over both."""
    matches = []
    for column in zip(*overlaps, strict=True):
        best = max(column)
        if best >= matching.positive:
            matches.append(column.index(best))
        else:
            matches.append(BACKGROUND if best < matching.negative else LEFT_OUT)
    if matching.low_quality is not None:
        for index, row in enumerate(overlaps):
            for box, overlap in enumerate(row):
                if overlap == max(row) > 0 and overlap >= matching.low_quality:
                    matches[box] = index
    return matches


def nms_by_loop(boxes, scores, groups, nms):
    """Return the indices that non-maximum suppression keeps, best first, by loops."""
    selected = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        better = (i for i in selected if groups[i] == groups[index])
        if all(iou(boxes[i], boxes[index]) <= nms for i in better):
            selected.append(index)
    return selected


def decode(anchor, offsets):
    x1, y1, x2, y2 = anchor
    dx, dy, dw, dh = offsets
    x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    width, height = (x2 - x1) * math.exp(dw), (y2 - y1) * math.exp(dh)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def encode(box, anchor):
    (x1, y1, x2, y2), (a, b, c, d) = box, anchor
    return [
        (x1 + x2 - a - c) / 2 / (c - a),
        (y1 + y2 - b - d) / 2 / (d - b),
        math.log((x2 - x1) / (c - a)),
        math.log((y2 - y1) / (d - b)),
    ]


def batch():
    images, targets = scenes(3, 64)
    targets[1] = scene([], (50, 64))  # an image without objects, of smaller height
    return images, targets
