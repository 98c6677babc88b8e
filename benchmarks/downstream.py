"""Speed and memory of Mask R-CNN and UPerNet on SMT-S, against two baselines each.

`python benchmarks/downstream.py` times a training step and inference of Mask R-CNN at 800 x 1280
and of UPerNet at 512 x 512 in turn, round by round, with
- this project's head on SMT-S,
- the same head on timm's Swin-T, a trunk of the same class (22 and 28 million parameters),
- torchvision's Mask R-CNN on SMT-S: the same layers, rules and sizes in another pipeline.
It prints a Markdown table of medians, wall and CPU time, of the rounds' ratios, and of the peak
memory of a new process that builds the model and calls it once. On a busy machine, compare CPU
time on one thread (`--threads 1`).

Weights, images and objects are random. A detector with random weights has no proposals near objects
and no detections, so its mask head would have no work. Hence some proposals are replaced by boxes
near objects, and the logit of one class is raised so that all proposals pass the threshold: as with
trained weights, an image has 128 positive regions in training and 100 detections in inference. The
table counts the regions of the mask head.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from model import memory_kb
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from smt.config.heads import TwoStage
from smt.config.load import load_project
from smt.config.project import Project
from smt.config.recipes import DetectionRecipe, SegmentationRecipe
from smt.data.detection import pad
from smt.data.transforms.image import padded_size
from smt.detection.paste import paste
from smt.detection.structures import Backbone, Size, Target
from smt.detection.two_stage import STRIDES, TwoStageDetector
from smt.models.pyramid import Pyramid
from smt.runs.atomic import write_json
from smt.runs.paths import bundled_params
from smt.segmentation.upernet import UPerNet

OURS, SWIN, TORCHVISION = "SMT-S", "Swin-T, same head", "SMT-S, torchvision's pipeline"
MODEL = "smt_small"
TIMM_MODEL = "swin_tiny_patch4_window7_224"
SYSTEMS = {"mask_rcnn": (OURS, SWIN, TORCHVISION), "upernet": (OURS, SWIN)}
MODES = ("training", "inference")
CASES = {f"{head}_{mode}": (head, mode) for head in SYSTEMS for mode in MODES}
SIDES_OVER = {"full": 1, "small": 4}
"""By which the sides of images are divided."""

OBJECTS = 7
"""Of an image."""
SIDES = (0.1, 0.5)
"""Smallest and largest side of an object, over that of the image."""
LOGIT_BONUS = 4.0
"""Added to the logit of one class: of 81 random ones it then has a score of 0.4, and the others
stay below the threshold of 0.05."""

NEAR = 300
"""Proposals of an image that are near objects; more than a quarter of the 512 samples."""
BOX_NOISE = 0.05
"""Standard deviation of those proposals' coordinates, over the object's sides."""

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Swin(nn.Module):
    """timm's Swin-T for images of one size; a level ends with a LayerNorm, as in its detectors."""

    def __init__(self, size: Size, drop_path_rate: float) -> None:
        super().__init__()
        self.network = timm.create_model(
            TIMM_MODEL, features_only=True, img_size=size, drop_path_rate=drop_path_rate
        )
        self.widths = tuple(self.network.feature_info.channels())
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return images (B, C_i, H_i, W_i) at strides 4, 8, 16, 32 of (B, 3, H, W)."""
        levels = zip(self.norms, self.network(images), strict=True)  # (B, H_i, W_i, C_i)
        return [norm(level).permute(0, 3, 1, 2) for norm, level in levels]


class NamedPyramid(nn.Module):
    """A trunk and torchvision's feature pyramid, as torchvision's detectors take them."""

    def __init__(self, trunk: Backbone, channels: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.neck = FeaturePyramidNetwork(trunk.widths, channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.neck({str(i): level for i, level in enumerate(self.trunk(images))})


@dataclass(frozen=True)
class System:
    """A network and the calls that are measured; both use the same random numbers each time."""

    network: nn.Module
    learn: Callable[[], dict[str, Tensor]]
    """Forward in training mode: the losses."""
    infer: Callable[[], object]
    """From normalised images to masks or logits, in evaluation mode."""
    mask_head: nn.Module | None = None

    def run(self, mode: str) -> None:
        """Take a training step, without the optimizer's part, or infer."""
        torch.manual_seed(0)
        if mode == "training":
            torch.stack(list(self.learn().values())).sum().backward()
            self.network.zero_grad(set_to_none=True)
        else:
            with torch.inference_mode():
                self.infer()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    def masks(self, mode: str) -> int:
        """Run once; return how many regions the mask head saw, 0 where there is none."""
        if self.mask_head is None:
            return 0
        regions: list[int] = []
        handle = self.mask_head.register_forward_pre_hook(lambda _, x: regions.append(len(x[0])))
        self.run(mode)
        handle.remove()
        return sum(regions)


@dataclass(frozen=True)
class Bench:
    """Makes the systems of one head."""

    project: Project
    head: str
    over: int
    """By which the sides of images are divided."""

    @property
    def recipe(self) -> DetectionRecipe | SegmentationRecipe:
        name = {"mask_rcnn": "mask_rcnn_1x", "upernet": "upernet_160k"}[self.head]
        recipe = self.project.recipes[name]
        assert isinstance(recipe, DetectionRecipe | SegmentationRecipe)
        return recipe

    @property
    def size(self) -> Size:
        """Return height and width of the images."""
        recipe = self.recipe
        if isinstance(recipe, DetectionRecipe):
            return recipe.resolution // self.over, recipe.resolution_long // self.over
        return recipe.augment.crop // self.over, recipe.augment.crop // self.over

    @property
    def batch(self) -> int:
        """Return the images of a call: a process's of the recipe, on CPUs one for a detector."""
        single = DEVICE.type == "cpu" and self.head == "mask_rcnn"
        return 1 if single else self.recipe.device_batch

    @property
    def classes(self) -> int:
        """Return the classes of the recipe's data set."""
        return self.project.datasets[self.recipe.dataset].classes

    @property
    def _two_stage(self) -> TwoStage:
        head = self.project.heads["mask_rcnn"]
        assert isinstance(head, TwoStage)
        return head

    def build(self, system: str, mode: str) -> System:
        torch.manual_seed(0)
        trunk = self._swin() if system == SWIN else self._smt()
        if self.head == "upernet":
            result = self._segmenter(trunk)
        elif system == TORCHVISION:
            result = self._torchvision(trunk)
        else:
            result = self._detector(trunk)
        result.network.train(mode == "training")
        return result

    def _smt(self) -> Pyramid:
        recipe = self.recipe
        return Pyramid(self.project.models[MODEL], recipe.drop_path, recipe.drop_path_mode)

    def _swin(self) -> Swin:
        return Swin(padded_size(self.size), self.recipe.drop_path)

    def _segmenter(self, trunk: Any) -> System:
        classes = self.classes
        network = UPerNet(trunk, head=self.project.heads["upernet"], classes=classes).to(DEVICE)
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(self.batch, 3, *self.size, generator=generator).to(DEVICE)
        labels = torch.randint(classes, (self.batch, *self.size), generator=generator).to(DEVICE)
        return System(
            network, lambda: network(images, labels), lambda: network.logits(images).argmax(1)
        )

    def _detector(self, trunk: Backbone) -> System:
        head, classes = self._two_stage, self.classes
        network = TwoStageDetector(trunk, head=head, classes=classes).to(DEVICE)
        network.box_heads[0].classifier.bias.data[0] += LOGIT_BONUS
        images, targets = self._scenes(classes)
        near, propose = [boxes_near_objects(target) for target in targets], network.rpn.propose
        network.rpn.propose = lambda *arguments: replace_first(near, propose(*arguments))
        batch, sizes = pad(images), [self.size] * len(images)

        def infer() -> list[Tensor]:
            detections = network.predict(batch, sizes)
            return [
                paste(detection.masks, detection.boxes, self.size, head.mask_threshold)
                for detection in detections
            ]

        return System(network, lambda: network(batch, targets), infer, network.mask_heads[0])

    def _torchvision(self, trunk: Backbone) -> System:
        head, classes = self._two_stage, self.classes
        network = torchvision_mask_rcnn(trunk, head, classes, self.size).to(DEVICE)
        network.roi_heads.box_predictor.cls_score.bias.data[1] += LOGIT_BONUS
        images, targets = self._scenes(classes)
        near, propose = (
            [boxes_near_objects(target) for target in targets],
            network.rpn.filter_proposals,
        )

        def filter_proposals(*arguments: Any) -> tuple[list[Tensor], list[Tensor]]:
            boxes, scores = propose(*arguments)
            return replace_first(near, boxes), scores

        network.rpn.filter_proposals = filter_proposals
        theirs = [
            {"boxes": target.boxes, "labels": target.labels + 1, "masks": target.masks.byte()}
            for target in targets
        ]

        def infer() -> list[Tensor]:
            return [result["masks"] >= head.mask_threshold for result in network(images)]

        mask_head = network.roi_heads.mask_head
        return System(network, lambda: network(images, theirs), infer, mask_head)

    def _scenes(self, classes: int) -> tuple[list[Tensor], list[Target]]:
        """Return images (3, H, W) and what is in them, the same for all systems."""
        generator = torch.Generator().manual_seed(1)
        images = [torch.randn(3, *self.size, generator=generator) for _ in range(self.batch)]
        targets = [random_scene(self.size, classes, generator) for _ in images]
        return [image.to(DEVICE) for image in images], targets


def random_scene(size: Size, classes: int, generator: torch.Generator) -> Target:
    """Return drawn objects in an image of `size`, whose masks are ellipses."""
    limit = torch.tensor(size[::-1], dtype=torch.float32)
    least, most = SIDES
    sides = (least + (most - least) * torch.rand(OBJECTS, 2, generator=generator)) * limit
    first = torch.rand(OBJECTS, 2, generator=generator) * (limit - sides)
    centre, half = (first + sides / 2)[..., None, None], (sides / 2)[..., None, None]
    y, x = (torch.arange(side) + 0.5 for side in size)
    across = ((x - centre[:, 0]) / half[:, 0]) ** 2  # (N, 1, W)
    down = ((y[:, None] - centre[:, 1]) / half[:, 1]) ** 2  # (N, H, 1)
    return Target(
        boxes=torch.cat([first, first + sides], dim=1).to(DEVICE),
        labels=torch.randint(classes, (OBJECTS,), generator=generator).to(DEVICE),
        size=size,
        masks=(across + down <= 1).to(DEVICE),
    )


def boxes_near_objects(target: Target) -> Tensor:
    """Return boxes (NEAR, 4) that overlap the objects of an image, as a trained network's do."""
    generator = torch.Generator().manual_seed(2)
    objects = target.boxes.cpu()
    index = torch.randint(len(objects), (NEAR,), generator=generator)
    sides = (objects[:, 2:] - objects[:, :2])[index].repeat(1, 2)
    boxes = objects[index] + BOX_NOISE * sides * torch.randn(NEAR, 4, generator=generator)
    height, width = target.size
    limit = torch.tensor([width, height, width, height])
    return boxes.clamp(min=0).minimum(limit).to(DEVICE)


def replace_first(near: list[Tensor], proposals: list[Tensor]) -> list[Tensor]:
    """Return as many proposals of each image as there are, the first ones replaced."""
    return [
        torch.cat([first, rest[len(first) :]])[: len(rest)]
        for first, rest in zip(near, proposals, strict=True)
    ]


def torchvision_mask_rcnn(trunk: Backbone, head: TwoStage, classes: int, size: Size) -> MaskRCNN:
    """Return torchvision's Mask R-CNN with the numbers of `head`; it leaves images as they are.

    Only its loss of offsets, a smooth L1, is not that of `head`.
    """
    rpn, stage = head.rpn, head.stages[0]
    anchors = tuple(tuple(scale * s for scale in rpn.anchors.scales) for s in STRIDES)
    levels = [str(i) for i in range(len(STRIDES) - 1)]
    box_pool, mask_pool = (
        MultiScaleRoIAlign(levels, side, sampling_ratio=-1)
        for side in (head.resolution, head.mask.resolution)
    )
    return MaskRCNN(
        NamedPyramid(trunk, head.channels),
        classes + 1,
        min_size=min(size), max_size=max(size), image_mean=[0.0] * 3, image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(anchors, (rpn.anchors.ratios,) * len(anchors)),
        rpn_pre_nms_top_n_train=rpn.training.before, rpn_pre_nms_top_n_test=rpn.test.before,
        rpn_post_nms_top_n_train=rpn.training.keep, rpn_post_nms_top_n_test=rpn.test.keep,
        rpn_nms_thresh=rpn.test.nms,
        rpn_fg_iou_thresh=rpn.matching.positive, rpn_bg_iou_thresh=rpn.matching.negative,
        rpn_batch_size_per_image=rpn.sampling.boxes, rpn_positive_fraction=rpn.sampling.positive,
        box_roi_pool=box_pool, mask_roi_pool=mask_pool,
        box_score_thresh=head.test.score, box_nms_thresh=head.test.nms,
        box_detections_per_img=head.test.keep,
        box_fg_iou_thresh=stage.matching.positive, box_bg_iou_thresh=stage.matching.negative,
        box_batch_size_per_image=head.sampling.boxes,
        box_positive_fraction=head.sampling.positive,
    )  # fmt: skip


def peak_mb(case: str, system: str) -> float:
    """Return the peak memory of a fresh process that makes a system and runs it once, in MB.

    On a GPU the tensors' there, else all of the process's, Python's and torch's own included.
    """
    command = [sys.executable, __file__, *sys.argv[1:], "--memory", case, system]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(process.stdout)


def print_peak(bench: Bench, system: str, mode: str) -> None:
    """Print what `peak_mb` reads, in the fresh process."""
    bench.build(system, mode).run(mode)
    if DEVICE.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        # Not ru_maxrss, which begins with that of the process that started this one.
        print(memory_kb("VmHWM") / 1024)


def time_in_turn(systems: dict[str, System], mode: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Return wall and CPU seconds of each call, in turn so that a drift of the machine hits all."""
    seconds: dict[str, dict[str, Any]] = {name: {"wall": [], "cpu": []} for name in systems}
    for _ in range(rounds):
        for name, system in systems.items():
            wall, cpu = time.perf_counter(), time.process_time()
            system.run(mode)
            seconds[name]["wall"].append(time.perf_counter() - wall)
            seconds[name]["cpu"].append(time.process_time() - cpu)
    return seconds


def measure(bench: Bench, mode: str, case: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Return parameters, regions with masks, seconds of each round and peak of each system."""
    systems = {name: bench.build(name, mode) for name in SYSTEMS[bench.head]}
    masks = {name: system.masks(mode) for name, system in systems.items()}  # warms up as well
    seconds = time_in_turn(systems, mode, rounds)
    return {
        name: {
            "parameters": sum(parameter.numel() for parameter in system.network.parameters()),
            "mask_regions": masks[name],
            "seconds": seconds[name],
            "peak_mb": peak_mb(case, name),
        }
        for name, system in systems.items()
    }


HEADER = """\
| case | system | parameters, M | masks | wall, ms | ours is ... times as fast | CPU, ms | \
... times | peak, MB | ours takes ... of it |
|---|---|---|---|---|---|---|---|---|---|"""


def rows(case: str, results: dict[str, dict[str, Any]]) -> str:
    """Return the lines of a case; ratios of ours to itself stay empty."""
    ours, lines = results[OURS], []
    for name, values in results.items():
        cells = [
            case,
            name,
            f"{values['parameters'] / 1e6:.1f}",
            str(values["mask_regions"] or "-"),
        ]
        for clock in ("wall", "cpu"):
            cells.append(f"{1000 * statistics.median(values['seconds'][clock]):.0f}")
            cells.append(
                "" if values is ours else times(ours["seconds"][clock], values["seconds"][clock])
            )
        cells.append(f"{values['peak_mb']:.0f}")
        cells.append("" if values is ours else f"{ours['peak_mb'] / values['peak_mb']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def times(ours: list[float], other: list[float]) -> str:
    """Return the rounds' ratios of seconds: median, smallest and largest."""
    ratios = [b / a for a, b in zip(ours, other, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def title(arguments: argparse.Namespace) -> str:
    """Return the title of the table: hardware, version and settings."""
    hardware = f"{torch.get_num_threads()} CPU threads"
    if DEVICE.type == "cuda":
        hardware = torch.cuda.get_device_name()
    text = f"{hardware}, torch {torch.__version__}, float32, medians of {arguments.rounds} rounds"
    if arguments.size != "full":
        text += f"; SIDES DIVIDED BY {SIDES_OVER[arguments.size]}: a trial, not the paper's sizes"
    return text


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME",
                        help=f"cases, of {', '.join(CASES)} [all]")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="calls of each system [3]")
    parser.add_argument("--threads", type=int, help="CPU threads [torch's own number]")
    parser.add_argument("--size", choices=SIDES_OVER, default="full", help="small: sides / 4")
    parser.add_argument("--json", type=Path, help="write every round to this file")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure every case."""
    arguments = arguments_of(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    project, over = load_project(bundled_params(), "paper"), SIDES_OVER[arguments.size]
    if arguments.memory:
        case, system = arguments.memory
        head, mode = CASES[case]
        print_peak(Bench(project, head, over), system, mode)
        return
    print(f"{title(arguments)}\n\n{HEADER}", flush=True)
    cases = {}
    for case in arguments.only:
        head, mode = CASES[case]
        bench = Bench(project, head, over)
        cases[case] = measure(bench, mode, case, arguments.rounds)
        height, width = bench.size
        print(rows(f"{case}, {bench.batch} x {height} x {width}", cases[case]), flush=True)
    if arguments.json:
        write_json(arguments.json, {"title": title(arguments), "cases": cases})


if __name__ == "__main__":
    main()
