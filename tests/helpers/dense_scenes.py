"""Helpers of tests of dense detectors: scenes, a small backbone, and definitions as loops."""

import contextlib
import io
import math

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image, ImageDraw
from torch import nn

from smt.detection.structures import Target
from smt.models import profile
from smt.models.pyramid import Pyramid
from tests.helpers.params import project_at

STRIDES = (8, 16, 32, 64, 128)


class SmallBackbone(nn.Module):
    """Convolutions with GroupNorm, so that features do not depend on the batch."""

    widths = (16, 32, 48, 64)

    def __init__(self):
        super().__init__()
        sources, strides = (3, *self.widths), (4, 2, 2, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(source, width, stride + 3, stride, 2),
                nn.GroupNorm(4, width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1),
                nn.GroupNorm(4, width),
                nn.ReLU(),
            )
            for source, width, stride in zip(sources, self.widths, strides, strict=False)
        )

    def forward(self, images):
        levels = [images]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        return levels[1:]


def head(name, **changes):
    """Return the paper's head with `changes`."""
    return project_at("paper").heads[name].model_copy(update=changes)


def small(detector, name, *, classes=3, seed=0, **changes):
    """Return a detector of few channels with random weights in its last layers."""
    torch.manual_seed(seed)
    spec = head(name, **{"channels": 32, "convolutions": 1, **changes})
    model = detector(SmallBackbone(), head=spec, classes=classes)
    with torch.no_grad():
        for conv, spread in ((model.head.classes, 0.3), (model.head.boxes, 0.1)):
            conv.weight.normal_(std=spread)
        model.head.classes.bias.zero_()  # the initial bias makes losses of background negligible
    return model


def on_meta(detector, name):
    """Return the paper's detector on SMT-S with 80 classes, on the meta device."""
    model = project_at("paper").models["smt_small"]
    with torch.device("meta"):
        return detector(Pyramid(model, 0.2), head=head(name), classes=80).eval()


def parameter_count(module):
    return sum(tensor.numel() for tensor in module.parameters())


def gmacs(model, height, width):
    """Return GMACs of an image: convolutions of FPN and head, and the total by both conventions."""
    images = torch.empty(1, 3, height, width, device="meta")
    total = profile.count_forward(model, images, forward=model.maps)
    features = model.backbone(images)[1:]
    pyramid = profile.count_forward(model.pyramid, features)
    head = profile.count_forward(model.head, model.pyramid(features))
    return {
        "pyramid": f"{pyramid.conv_macs / 1e9:.2f}",
        "head": f"{head.conv_macs / 1e9:.2f}",
        "reported": f"{total.reported / 1e9:.2f}",
        "all": f"{total.attention / 1e9:.1f}",
    }


def target(boxes, labels, size):
    return Target(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        size,
    )


def scenes(count, side, seed=0):
    """Return images (count, 3, side, side) of discs, squares and triangles, and their targets."""
    random = np.random.default_rng(seed)
    images, targets = [], []
    for _ in range(count):
        image = Image.fromarray(random.integers(0, 60, (side, side, 3), dtype=np.uint8))
        boxes, labels = [], []
        for corner in random.permutation(4)[: random.integers(1, 4)]:  # at most one per quadrant
            size = int(random.integers(side // 4, side // 2 - 4))
            x, y = (int(index) * side // 2 + 2 for index in divmod(corner, 2))
            label = int(random.integers(3))
            draw_shape(ImageDraw.Draw(image), label, (x, y, x + size, y + size))
            boxes.append([x, y, x + size, y + size])
            labels.append(label)
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1)
        targets.append(target(boxes, labels, (side, side)))
    return torch.stack(images), targets


def draw_shape(canvas, label, box):
    x1, y1, x2, y2 = box
    inside = (x1, y1, x2 - 1, y2 - 1)  # Pillow includes the last pixel
    if label == 0:
        canvas.ellipse(inside, fill=(230, 60, 60))
    elif label == 1:
        canvas.rectangle(inside, fill=(60, 230, 60))
    else:
        canvas.polygon(
            [(x1, y2 - 1), (x2 - 1, y2 - 1), ((x1 + x2 - 1) / 2, y1)], fill=(60, 60, 230)
        )


def train(model, images, targets, *, steps, lr):
    """Train on one batch; return the losses by step.

    The learning rate is a tenth in the last quarter.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps * 3 // 4])
    model.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(model(images, targets).values())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def box_ap(model, images, targets):
    """Return COCO's box AP, in [0, 1]."""
    model.eval()
    with torch.no_grad():
        predictions = model.predict(images, [target.size for target in targets])
    annotations = [
        (image, box, label)
        for image, target in enumerate(targets)
        for box, label in zip(target.boxes.tolist(), target.labels.tolist(), strict=True)
    ]
    truth = {
        "images": [
            {"id": image, "height": target.size[0], "width": target.size[1]}
            for image, target in enumerate(targets)
        ],
        "categories": [{"id": label, "name": str(label)} for label in range(3)],
        "annotations": [
            {"id": i + 1, "image_id": image, "category_id": label, "bbox": corners(box),
             "area": corners(box)[2] * corners(box)[3], "iscrowd": 0}
            for i, (image, box, label) in enumerate(annotations)
        ],
    }  # fmt: skip
    results = [
        {"image_id": image, "category_id": int(label), "bbox": corners(box), "score": float(score)}
        for image, prediction in enumerate(predictions)
        for box, label, score in zip(
            prediction.boxes.tolist(), prediction.labels, prediction.scores, strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(truth)
        return coco_ap(coco, coco.loadRes(results), "bbox")


def coco_ap(truth, results, kind):
    evaluation = COCOeval_faster(truth, results, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


def corners(box):
    """Return a box (x1, y1, x2, y2) as COCO has it: x, y, width, height."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def iou(one, other):
    """Return the IoU of two boxes, at least one of which has an area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    overlap = max(width, 0) * max(height, 0)
    return overlap / (area(one) + area(other) - overlap)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def focal(logit, is_positive, alpha, gamma):
    """Return the focal loss of one class (equations 3 to 5 of its paper)."""
    probability = 1 / (1 + math.exp(-logit))
    p, a = (probability, alpha) if is_positive else (1 - probability, 1 - alpha)
    return -a * (1 - p) ** gamma * math.log(p)


def locations(size):
    """Return (stride, row, column) of the locations in an image, level by level."""
    padded = [-(-side // 32) * 32 for side in size]
    return [
        (stride, row, column)
        for stride in STRIDES
        for row in range(-(-padded[0] // stride))
        for column in range(-(-padded[1] // stride))
    ]


def read_predictions(maps, index, size, per_location, values):
    """Return the predictions of each anchor of an image, read from the maps by a loop."""
    rows = []
    for stride, row, column in locations(size):
        level = maps[STRIDES.index(stride)][index].double()
        for anchor in range(per_location):
            first = anchor * values
            channels = range(first, first + values)
            rows.append([float(level[channel, row, column]) for channel in channels])
    return rows


def batch():
    """Return three images of different sizes, padded to 96 x 128, and their targets.

    Objects differ in size and position; the last image has none. In RetinaNet no object has two
    anchors of the same best IoU, so that rounding does not decide the match.
    """
    torch.manual_seed(5)
    targets = [
        target([[3, 5, 37, 30], [40, 20, 125, 90.5], [60, 40, 105, 70]], [0, 2, 1], (96, 128)),
        target([[1.5, 2, 52, 59], [29, 42.5, 69, 54.5]], [1, 1], (60, 70)),
        target([], [], (32, 50)),
    ]
    images = torch.zeros(3, 3, 96, 128)
    for image, (height, width) in zip(images, (item.size for item in targets), strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    return images, targets


def without_objects(targets):
    return [target([], [], item.size) for item in targets]


def assert_every_parameter_has_a_gradient(model, images, targets):
    """Assert that losses and gradients are finite, and that every parameter has a gradient."""
    model.zero_grad()
    losses = model(images, targets)
    sum(losses.values()).backward()
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    return losses
