"""What the tests of dense detectors share: scenes, a small backbone, and definitions as loops."""

import contextlib
import io
import math

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image, ImageDraw
from torch import nn

from smt.config.load import load_project
from smt.detection.structures import Target
from smt.models import profile
from smt.models.pyramid import Pyramid
from tests.helpers import ROOT

STRIDES = (8, 16, 32, 64, 128)


class SmallBackbone(nn.Module):
    """Convolutions with GroupNorm, so that an image does not depend on its batch."""

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
    """Return the paper's head, but for `changes`."""
    return load_project(ROOT / "params", "paper").heads[name].model_copy(update=changes)


def small(detector, name, *, classes=3, seed=0, **changes):
    """Return a detector of few channels whose predictions differ, background's too."""
    torch.manual_seed(seed)
    spec = head(name, **{"channels": 32, "convolutions": 1, **changes})
    model = detector(SmallBackbone(), head=spec, classes=classes)
    with torch.no_grad():
        for conv, spread in ((model.head.classes, 0.3), (model.head.boxes, 0.1)):
            conv.weight.normal_(std=spread)
        model.head.classes.bias.zero_()  # else a background's loss is too small to be missed
    return model


def on_meta(detector, name):
    """Return the paper's detector on SMT-S, of 80 classes, without any weights."""
    model = load_project(ROOT / "params", "paper").models["smt_small"]
    with torch.device("meta"):
        return detector(Pyramid(model, 0.2), head=head(name), classes=80).eval()


def parameters(module):
    return sum(each.numel() for each in module.parameters())


def gmacs(model, height, width):
    """Return 10^9 MACs of an image: convolutions of parts, and all by both conventions."""
    images = torch.empty(1, 3, height, width, device="meta")
    whole = profile.count_forward(model, images, forward=model.maps)
    features = model.backbone(images)[1:]
    pyramid = profile.count_forward(model.pyramid, features)
    head = profile.count_forward(model.head, model.pyramid(features))
    return {
        "pyramid": f"{pyramid.conv_macs / 1e9:.2f}",
        "head": f"{head.conv_macs / 1e9:.2f}",
        "reported": f"{whole.reported / 1e9:.2f}",
        "all": f"{whole.attention / 1e9:.1f}",
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
        for corner in random.permutation(4)[: random.integers(1, 4)]:  # at most one a quarter
            size = int(random.integers(side // 4, side // 2 - 4))
            x, y = (int(each) * side // 2 + 2 for each in divmod(corner, 2))
            label = int(random.integers(3))
            draw(ImageDraw.Draw(image), label, (x, y, x + size, y + size))
            boxes.append([x, y, x + size, y + size])
            labels.append(label)
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1)
        targets.append(target(boxes, labels, (side, side)))
    return torch.stack(images), targets


def draw(canvas, label, box):
    x1, y1, x2, y2 = box
    inside = (x1, y1, x2 - 1, y2 - 1)  # Pillow draws the last pixel too
    if label == 0:
        canvas.ellipse(inside, fill=(230, 60, 60))
    elif label == 1:
        canvas.rectangle(inside, fill=(60, 230, 60))
    else:
        canvas.polygon(
            [(x1, y2 - 1), (x2 - 1, y2 - 1), ((x1 + x2 - 1) / 2, y1)], fill=(60, 60, 230)
        )


def train(model, images, targets, *, steps, lr):
    """Train on one batch over and over, and return the loss of each step.

    The rate falls to a tenth for the last quarter.
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
    """Return COCO's box AP."""
    model.eval()
    with torch.no_grad():
        found = model.predict(images, [each.size for each in targets])
    annotations = [
        (image, box, label)
        for image, each in enumerate(targets)
        for box, label in zip(each.boxes.tolist(), each.labels.tolist(), strict=True)
    ]
    truth = {
        "images": [
            {"id": i, "height": each.size[0], "width": each.size[1]}
            for i, each in enumerate(targets)
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
        for image, each in enumerate(found)
        for box, label, score in zip(each.boxes.tolist(), each.labels, each.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(truth)
        evaluation = COCOeval_faster(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


def corners(box):
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def iou(one, other):
    """Return the intersection over union of two boxes, of which one has an area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    overlap = max(width, 0) * max(height, 0)
    return overlap / (area(one) + area(other) - overlap)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def focal(logit, there, alpha, gamma):
    """Return the focal loss of one class (its paper's equations 3 to 5)."""
    probability = 1 / (1 + math.exp(-logit))
    p, a = (probability, alpha) if there else (1 - probability, 1 - alpha)
    return -a * (1 - p) ** gamma * math.log(p)


def own_places(size):
    """Return (stride, row, column) of an image's places, level by level."""
    padded = [-(-side // 32) * 32 for side in size]
    return [
        (stride, row, column)
        for stride in STRIDES
        for row in range(-(-padded[0] // stride))
        for column in range(-(-padded[1] // stride))
    ]


def predicted(maps, index, size, per_place, values):
    """Return the values of each anchor of an image, read from the maps one by one."""
    rows = []
    for stride, row, column in own_places(size):
        level = maps[STRIDES.index(stride)][index].double()
        for anchor in range(per_place):
            first = anchor * values
            rows.append([float(level[first + each, row, column]) for each in range(values)])
    return rows


def batch():
    """Return images padded to 96 x 128, and their targets: of two sizes, and one without objects.

    Their objects are unlike in size and place. None has two best anchors of RetinaNet, which
    rounding would tell apart; the last has none with an IoU of 0.5.
    """
    torch.manual_seed(5)
    targets = [
        target([[3, 5, 37, 30], [40, 20, 125, 90.5], [60, 40, 105, 70]], [0, 2, 1], (96, 128)),
        target([[1.5, 2, 52, 59], [29, 42.5, 69, 54.5]], [1, 1], (60, 70)),
        target([], [], (32, 50)),
    ]
    images = torch.zeros(3, 3, 96, 128)
    for image, each in zip(images, targets, strict=True):
        height, width = each.size
        image[:, :height, :width] = torch.randn(3, height, width)
    return images, targets


def empty(targets):
    return [target([], [], each.size) for each in targets]


def assert_every_parameter_learns(model, images, targets):
    """Assert that losses are finite and that no parameter is without a gradient."""
    model.zero_grad()
    losses = model(images, targets)
    sum(losses.values()).backward()
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    for name, each in model.named_parameters():
        assert each.grad is not None and each.grad.isfinite().all(), name
    return losses
