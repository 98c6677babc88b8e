"""What a GPU makes of this project: numbers against the CPU's, memory, speed, and exact resume.

`python benchmarks/gpu.py` needs one GPU, no data and no server. It takes some ten minutes on an
H200: cuDNN plans each new convolution, which is most of it. Parts can be named. Each prints lines
as it goes; a failure of one does not end the others; what was measured is written as JSON
(`--json`). Parts, in their order:

- facts: card, driver, versions;
- agreement: loss and gradients of every head in float32, against those of the CPU;
- repeat: whether a training step of every head has the same bits when it is taken again, and with
  blocks computed again in the backward pass;
- roi_align, sampling: their deterministic gradients beside the kernels';
- steps: four training steps and a prediction of every experiment at paper scale, each of the
  largest batch that can come, with their memory;
- training, inference: images a second of SMT-T, S, B and L; those of inference go to
  results/benchmarks/ as well, for the table `throughput`;
- resume: trainings killed and gone on with, against undisturbed ones, byte for byte (`smt prove`).

On a machine without a GPU it runs on the CPU with `--small`, which takes the smoke scale's models
and compiles nothing: a rehearsal of the script, whose times mean nothing.
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
import torchvision
from plain import PlainSMT
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from smt.config.load import load_project
from smt.config.project import Project
from smt.config.yaml import YamlFile
from smt.data.rng import reseed
from smt.data.transforms.image import Normalise
from smt.detection import roi_align as roi
from smt.detection.grid_sample import grid_sample
from smt.detection.structures import Size
from smt.engine import optim
from smt.engine.determinism import NondeterminismRecorder
from smt.engine.device import allow_tf32, use_deterministic_algorithms
from smt.engine.distributed import Ranks
from smt.engine.preempt import StopRequest
from smt.engine.progress import Progress
from smt.engine.trainer import Settings, Trainer
from smt.models import blocks
from smt.models.compiled import compile_blocks
from smt.models.smt import set_recompute
from smt.report import throughput
from smt.runs.paths import Layout, bundled_params
from smt.tasks.synthetic import Synthetic

HEADS = (
    "imagenet1k_smt_tiny", "coco_mask_rcnn_1x_smt_small", "coco_cascade_mask_rcnn_smt_small",
    "coco_retinanet_smt_small", "coco_atss_smt_small", "coco_sparse_rcnn_smt_small",
    "coco_dino_smt_small", "ade20k_upernet_smt_small",
)  # fmt: skip
"""An experiment of every kind of network."""

VARIANTS = (
    "imagenet1k_smt_tiny", "imagenet1k_smt_small", "imagenet1k_smt_base", "imagenet22k_smt_large",
)  # fmt: skip

PROVED = (
    "imagenet1k_smt_tiny", "coco_mask_rcnn_1x_smt_small", "coco_sparse_rcnn_smt_small",
    "ade20k_upernet_smt_small",
)  # fmt: skip

GIB = 2**30


class Bench:
    """The device, the scale, and what was measured so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.small = arguments.small
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.project: Project = load_project(bundled_params(), "smoke" if self.small else "paper")
        self.rounds = 2 if self.small else 10
        self.found: dict[str, Any] = {}

    def size(self, experiment: str, wanted: Size | None = None) -> Size | None:
        """Return the size of images: `wanted`, or None for the experiment's own."""
        if not self.small:
            return wanted
        return (64, 64) if self.project.experiments[experiment].head else (32, 32)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Give back what the last measurement held."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """Return the most memory that tensors had, in GiB."""
        return torch.cuda.max_memory_allocated() / GIB if self.device.type == "cuda" else 0.0

    def seconds(self, call: Callable[[], object]) -> float:
        self.synchronize()
        start = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - start

    def median(self, call: Callable[[], object], warm: int = 3) -> float:
        """Return the median time of a call, in seconds."""
        for _ in range(warm):
            call()
        return statistics.median(self.seconds(call) for _ in range(self.rounds))


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Ask for deterministic algorithms as training does, or for the quickest."""
    if wanted:
        use_deterministic_algorithms()
    else:
        torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = not wanted
    try:
        yield
    finally:
        use_deterministic_algorithms()
        torch.backends.cudnn.benchmark = False


class SameDraws(TorchFunctionMode):
    """Draws on the CPU whatever is drawn, so that two devices draw the same."""

    NEW = (torch.rand, torch.randn, torch.randint, torch.randperm)
    LIKE = (torch.rand_like, torch.randint_like)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.NEW:
            device = kwargs.pop("device", "cpu")
            return func(*args, **kwargs).to(device)
        if func in self.LIKE:
            device = args[0].device
            return func(args[0].cpu(), *args[1:], **kwargs).to(device)
        return func(*args, **kwargs)


# --- parts ----------------------------------------------------------------------------------------


def facts(bench: Bench) -> dict[str, Any]:
    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": str(bench.device)}
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / GIB, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "driver": subprocess.run(query, capture_output=True, text=True).stdout.strip(),
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "architectures": torch.cuda.get_arch_list(),
        }
    say(", ".join(f"{name} {value}" for name, value in found.items()))
    return found


def agreement(bench: Bench) -> dict[str, Any]:
    """Without dropout and drop path, which devices draw otherwise."""
    found = {}
    for experiment in HEADS:
        found[experiment] = agreement_of(bench, experiment)
        bench.forget()
    return found


def agreement_of(bench: Bench, experiment: str) -> dict[str, Any]:
    size = bench.size(experiment, (224, 256))
    cpu, gpu = (
        loss_and_gradients(bench.project, experiment, device, size)
        for device in (torch.device("cpu"), bench.device)
    )
    of_loss = abs(gpu[0] - cpu[0]) / abs(cpu[0])
    one, other = (torch.cat([g.flatten().double().cpu() for g in each[1]]) for each in (cpu, gpu))
    of_gradient = float((other - one).norm() / one.norm())
    say(f"{experiment:38} loss differs by {of_loss:.1e}, gradient by {of_gradient:.1e} of it")
    return {"loss": (cpu[0], gpu[0]), "loss_difference": of_loss, "gradient": of_gradient}


def loss_and_gradients(
    project: Project, experiment: str, device: torch.device, size: Size | None
) -> tuple[float, list[Tensor]]:
    with SameDraws():
        torch.manual_seed(0)
        task = Synthetic(project, experiment, device, images=2, size=size, precision="fp32")
        for module in task.model.modules():
            if isinstance(module, blocks.Block):
                module.drop_path_rate = 0.0
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        batch = next(task.micro_batches())
        loss = task.loss(task.model, batch)
        loss.backward()
    gradients = [each.grad for each in task.model.parameters() if each.grad is not None]
    return float(loss.detach()), gradients


def normalisation(bench: Bench) -> dict[str, Any]:
    """Every level of every channel, which a training normalises on its device."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(16, 16).expand(1, 3, 16, 16)
    cpu, gpu = (Normalise(device)(levels).cpu() for device in ("cpu", bench.device))
    differ = int((cpu != gpu).sum())
    say(f"normalised levels that differ from the CPU's in any bit: {differ} of {levels.numel()}")
    return {"differ": differ}


def repeat(bench: Bench) -> dict[str, Any]:
    found = {}
    for experiment in HEADS:
        size = bench.size(experiment, (416, 544))
        torch.manual_seed(0)
        task = Synthetic(bench.project, experiment, bench.device, images=2, size=size)
        batch = next(task.micro_batches())
        named: list[str] = []
        same = []
        with NondeterminismRecorder(lambda names, named=named: named.extend(names)):
            before = None
            for _ in range(4):
                now = gradients_of(task, batch)
                same += [] if before is None else [all(map(torch.equal, before, now))]
                before = now
            set_recompute(task.model, True)
            recomputed = all(map(torch.equal, now, gradients_of(task, batch)))
        found[experiment] = {
            "same": all(same), "recomputed": recomputed, "named": sorted(set(named))
        }  # fmt: skip
        say(
            f"{experiment:38} {'same bits' if all(same) else 'other bits'} four times, "
            f"{'the same' if recomputed else 'others'} with recomputation; torch names "
            f"{', '.join(sorted(set(named))) or 'nothing'}"
        )
        del task, batch, before, now
        bench.forget()
    return found


def gradients_of(task: Synthetic, batch: Any) -> list[Tensor]:
    reseed(0, "model")
    task.model.zero_grad(set_to_none=True)
    with optim.autocast(task.recipe, batch.loss_inputs[0].device):
        loss = task.loss(task.model, batch)
    (loss * 2**7).backward()  # in the range of fp16
    return [each.grad.clone() for each in task.model.parameters() if each.grad is not None]


def roi_align(bench: Bench) -> dict[str, Any]:
    """Of the finest level of two images, 200 x 336 cells, and 512 boxes of each."""
    boxes_each, channels, size = (8, 4, (20, 34)) if bench.small else (512, 256, (200, 336))
    found: dict[str, Any] = {}
    torch.manual_seed(0)
    features = torch.randn(2, channels, *size, device=bench.device, requires_grad=True)
    extent = 4 * torch.tensor([size[1], size[0]], device=bench.device)
    first = torch.rand(2, boxes_each, 2, device=bench.device) * extent * 0.8
    sides = 8 + torch.rand(2, boxes_each, 2, device=bench.device) * extent * 0.15
    image = torch.arange(2, device=bench.device)[:, None, None].expand(-1, boxes_each, 1)
    boxes = torch.cat([image, first, first + sides], dim=2).flatten(0, 1)
    counts = [boxes_each, boxes_each]

    def measured(name: str, call: Callable[[], Tensor], count: int) -> None:
        def step() -> None:
            features.grad = None
            call().sum().backward()

        bench.forget()
        before = bench.peak()
        try:
            seconds = bench.median(step)
        except torch.OutOfMemoryError as error:
            say(f"{name}: {str(error).splitlines()[0][:160]}")
            found[name] = {"boxes": count, "failed": "out of memory"}
            return
        found[name] = {"boxes": count, "seconds": seconds, "gib": bench.peak() - before}
        say(f"{name:44} {count:5} boxes {seconds * 1e3:8.2f} ms {bench.peak() - before:7.2f} GiB")

    torch.use_deterministic_algorithms(False)
    measured("the kernel, not deterministic",
             lambda: roi.roi_align(features, boxes, 7, counts=counts, scale=0.25),
             len(boxes))  # fmt: skip
    use_deterministic_algorithms()
    measured("ours, deterministic",
             lambda: roi.roi_align(features, boxes, 7, counts=counts, scale=0.25),
             len(boxes))  # fmt: skip
    bench.rounds, rounds = 1, bench.rounds
    for count in (1, 2):
        measured("torchvision's function, deterministic",
                 lambda count=count: torchvision.ops.roi_align(
                     features, boxes[:count], 7, 0.25, -1, aligned=True),
                 count)  # fmt: skip
    bench.rounds = rounds
    return found


def sampling(bench: Bench) -> dict[str, Any]:
    """Of deformable attention: its deterministic gradient beside the kernel's, and DINO's step."""
    queries, (height, width) = (30, (10, 16)) if bench.small else (22_223, (100, 167))
    torch.manual_seed(0)
    maps = torch.randn(16, 32, height, width, device=bench.device, requires_grad=True)
    grid = torch.rand(16, queries, 4, 2, device=bench.device).mul(2).sub(1).requires_grad_()
    found = {}
    for name, wanted in (("the kernel, not deterministic", False), ("ours, deterministic", True)):
        with deterministic(wanted):
            bench.forget()
            before = bench.peak()
            seconds = bench.median(lambda: grid_sample(maps, grid).sum().backward())
            found[name] = {"seconds": seconds, "gib": bench.peak() - before}
            say(f"{name:44} {seconds * 1e3:8.2f} ms {bench.peak() - before:7.2f} GiB")
    for wanted in (False, True):
        with deterministic(wanted):
            experiment = "coco_dino_smt_small"
            task = Synthetic(bench.project, experiment, bench.device, size=bench.size(experiment))
            batch = next(task.micro_batches())
            bench.forget()
            seconds = bench.median(partial(gradients_of, task, batch))
            name = f"DINO's step, {'deterministic' if wanted else 'any algorithm'}"
            found[name] = {"seconds": seconds, "gib": bench.peak()}
            say(f"{name:44} {seconds * 1e3:8.2f} ms {bench.peak():7.2f} GiB")
            del task, batch
    return found


def steps(bench: Bench) -> dict[str, Any]:
    found = {}
    for experiment in distinct(bench.project):
        try:
            found[experiment] = measured = steps_of(bench, experiment)
        except (RuntimeError, ValueError, AssertionError) as error:
            traceback.print_exc(limit=-3)
            found[experiment] = measured = {"failed": str(error).splitlines()[0]}
            say(f"{experiment:38} FAILED {measured['failed']}")
        bench.forget()
    return found


def steps_of(bench: Bench, experiment: str) -> dict[str, Any]:
    torch.manual_seed(0)
    task = Synthetic(
        bench.project, experiment, bench.device, size=bench.size(experiment), largest=True
    )
    named: list[str] = []
    with tempfile.TemporaryDirectory() as folder, NondeterminismRecorder(named.extend):
        ranks = Ranks(0, 1, bench.device)
        trainer = Trainer(
            task, Path(folder), seed=0, ranks=ranks, settings=Settings(50, 1e9), stop=StopRequest()
        )
        progress = Progress(experiment, epochs=1, epoch_images=1, ranks=ranks)
        batches = task.micro_batches()
        times = []
        for _ in range(4):
            times.append(bench.seconds(partial(trainer.step, batches, progress)))
        training = bench.peak()
        without = [n for n, p in task.model.named_parameters() if p.requires_grad and p not in
                   trainer.state.optimizer.state]  # fmt: skip
        del trainer
        task.model.zero_grad(set_to_none=True)
        bench.forget()
        task.predict()
        predicting = bench.peak()
    measured = {
        "precision": task.recipe.precision,
        "images": task.images,
        "training_gib": round(training, 2),
        "prediction_gib": round(predicting, 2),
        "seconds": round(min(times[2:]), 4),
        "not_deterministic": sorted(set(named)),
        "without_gradient": without,
    }
    say(
        f"{experiment:38} {task.recipe.precision} batch {task.images:3}: training "
        f"{training:6.2f} GiB, {min(times[2:]) * 1e3:7.1f} ms a step with data; prediction "
        f"{predicting:5.2f} GiB; not deterministic: {', '.join(sorted(set(named))) or 'nothing'}"
        + (f"; without a gradient: {', '.join(without)}" if without else "")
    )
    return measured


def distinct(project: Project) -> list[str]:
    """Return the experiments of networks that differ, without ablations."""
    seen: dict[tuple[str | None, ...], str] = {}
    for name, each in project.experiments.items():
        if each.group != "ablation":
            seen.setdefault((each.head, each.model, each.recipe), name)
    return list(seen.values())


FORMS = (
    # precision, deterministic, compiled, channels-last
    ("fp16", True, False, True), ("fp16", False, False, True), ("bf16", True, False, True),
    ("bf16", False, False, True), ("bf16", False, False, False), ("bf16", True, True, True),
)  # fmt: skip


def training(bench: Bench) -> dict[str, Any]:
    """Forward, backward, clipping and AdamW on one batch that stays on the device."""
    found: dict[str, Any] = {}
    for experiment in VARIANTS:
        forms = FORMS if experiment == VARIANTS[0] else (FORMS[0], FORMS[2], FORMS[3])
        forms = tuple(form for form in forms if not (form[2] and bench.small))
        for form, baseline in [*((form, False) for form in forms), (FORMS[3], True)]:
            name = form_name(form) + (", plain baseline" if baseline else "")
            try:
                speed, peak = training_speed(bench, experiment, form, baseline)
            except Exception as error:  # the compiler may not be there
                say(f"{experiment:24} {name}: FAILED {str(error).splitlines()[0]}")
                continue
            found.setdefault(experiment, {})[name] = {"images_s": speed, "gib": peak}
            say(f"{experiment:24} {name:48} {speed:7.0f} images/s, {peak:6.2f} GiB")
            bench.forget()
    return found


def form_name(form: tuple[str, bool, bool, bool]) -> str:
    precision, repeats, compiled, last = form
    words = [precision, "deterministic" if repeats else "any algorithm"]
    return ", ".join([*words, *["compiled"] * compiled, *["channels-first"] * (not last)])


def plain(bench: Bench, experiment: str) -> nn.Module:
    """Return the baseline of `plain.py`, which has the structure of the released code."""
    task = bench.project.experiments[experiment]
    classes = bench.project.datasets[bench.project.recipes[task.recipe].dataset].classes
    return PlainSMT(bench.project.models[task.model], classes).to(bench.device)


def training_speed(
    bench: Bench, experiment: str, form: tuple[str, bool, bool, bool], baseline: bool = False
) -> tuple[float, float]:
    precision, repeats, compiled, last = form
    images = 4 if bench.small else 128
    with deterministic(repeats):
        size = bench.size(experiment, (224, 224))
        task = Synthetic(
            bench.project, experiment, bench.device, images=images, size=size, precision=precision
        )
        if not last:
            task.model.to(memory_format=torch.contiguous_format)
        if baseline:
            task.model = plain(bench, experiment)
        if compiled:
            torch._dynamo.reset()
            compile_blocks(task.model)
        optimizer = optim.adamw(task.model, task.recipe.optimizer)
        scaler = optim.loss_scaler(task.recipe, bench.device)
        parameters = list(task.model.parameters())
        batch = next(task.micro_batches())

        def step() -> None:
            with optim.autocast(task.recipe, bench.device):
                loss = task.loss(task.model, batch)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            optim.clip(parameters, task.recipe.optimizer.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

        seconds = bench.median(step)
        return images / seconds, bench.peak()


def inference(bench: Bench) -> dict[str, Any]:
    """At batch 64, as most speeds are published."""
    found: dict[str, Any] = {}
    images = 4 if bench.small else 64
    for experiment in VARIANTS:
        model = bench.project.experiments[experiment].model
        published = bench.project.reported.throughput[model]
        for precision in ("fp32", "fp16", "bf16"):
            task = Synthetic(
                bench.project, experiment, bench.device, images=images, precision=precision,
                size=bench.size(experiment, (224, 224)),
            )  # fmt: skip
            batch = next(task.micro_batches()).loss_inputs[0]
            task.model.eval()
            compiled = experiment == VARIANTS[0] and not bench.small
            for form in ("", *["compiled"] * compiled, "plain baseline"):
                if form == "compiled":
                    torch._dynamo.reset()
                    compile_blocks(task.model)
                if form == "plain baseline":
                    task.model = plain(bench, experiment).eval()

                @torch.inference_mode()
                def call(task: Synthetic = task, batch: Tensor = batch) -> None:
                    with optim.autocast(task.recipe, bench.device):
                        task.model(batch)

                try:
                    speed = images / bench.median(call)
                except Exception as error:
                    say(f"{experiment:24} {precision}: FAILED {str(error).splitlines()[0]}")
                    continue
                name = ", ".join([precision, *[form] * bool(form)])
                found.setdefault(experiment, {})[name] = speed
                rate = f"{published.images_per_second:g} on {published.setting}"
                beside = "" if bench.small else f" (published: {rate})"
                say(f"{experiment:24} {name:20} {speed:7.0f} images/s{beside}")
            del task, batch
            bench.forget()
    if not bench.small:
        write_rates(bench, found, images)
    return found


def write_rates(bench: Bench, found: dict[str, Any], images: int) -> None:
    """Write the speeds of eager inference where the table `throughput` reads them."""
    for precision in ("fp32", "fp16", "bf16"):
        rates = {
            bench.project.experiments[experiment].model: speeds[precision]
            for experiment, speeds in found.items()
            if precision in speeds
        }
        if not rates:
            continue
        measured = throughput.ThroughputRecord(
            machine=torch.cuda.get_device_name(), device="cuda", threads=None, precision=precision,
            batch=images, resolution=224, torch=torch.__version__, rates=rates,
        )  # fmt: skip
        say(f"written: {throughput.write(Layout.from_environment('paper'), measured)}")


def resume(bench: Bench) -> dict[str, Any]:
    """Of the smoke scale, in fp16; its data are made where they are missing."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        smt = Smt(root, half_precision_params(root / "params"))
        project = load_project(root / "params", "smoke")
        parents = dict.fromkeys(p for each in PROVED for p in project.ancestors(each))
        for key in dict.fromkeys(project.dataset_of(each) for each in (*parents, *PROVED)):
            smt.run("data", "make", key)
            smt.run("data", "manifest", key)
        for parent in parents:
            smt.run("train", parent, "--no-send")
            say(f"{parent:38} trained, for others to start from")
        proofs = {each: smt.start("prove", each, "--tables", "never") for each in PROVED}
        found = {}
        for experiment, proof in proofs.items():
            said, _ = proof.communicate()
            (record,) = root.glob(f"results/smoke/**/{experiment}-seed0*.json")
            outcome = json.loads(record.read_text())
            found[experiment] = outcome
            ends = ", ".join(f"{kill['kill']} at {kill['at_step']}" for kill in outcome["kills"])
            same = outcome["weights_equal"] and outcome["journal_equal"]
            say(f"{experiment:38} {'same bytes' if same else 'OTHER BYTES'}; killed: {ends}")
            if not same:
                say(said[-1500:])
        return found


class Smt:
    """`smt` commands at the smoke scale with folders of their own."""

    def __init__(self, root: Path, params: Path) -> None:
        self._params = params
        self._environment = os.environ | {
            "SMT_RESULTS": str(root / "results"),
            "SMT_DATA": os.environ.get("SMT_DATA", str(root / "data")),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path[1:]]),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "smt", "--params", self._params, *arguments, "--scale", "smoke"],
            env=self._environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *arguments: str) -> None:
        process = self.start(*arguments)
        said, _ = process.communicate()
        if process.returncode:
            say(said[-2000:])
            raise RuntimeError(f"smt {' '.join(arguments)}: exit code {process.returncode}")


def half_precision_params(target: Path) -> Path:
    """Copy params, with every recipe of the smoke scale in fp16."""
    shutil.copytree(bundled_params(), target)
    scales = dict(YamlFile(target / "scales.yaml").data)
    for kind in ("recipes", "detection_recipes", "segmentation_recipes"):
        for recipe in ("*", *scales["demo"][kind]):
            scales["smoke"][kind].setdefault(recipe, {})["precision"] = "fp16"
    (target / "scales.yaml").write_text(json.dumps(scales))
    return target


# --- the whole ------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    each.__name__: each
    for each in (facts, agreement, normalisation, repeat, roi_align, sampling, steps, training,
                 inference, resume)
}  # fmt: skip


def say(line: str) -> None:
    print(line, flush=True)


def run(bench: Bench, parts: Sequence[str], target: Path | None) -> bool:
    """Run the parts; return whether all came to their end."""
    whole = True
    for part in parts:
        start = time.monotonic()
        say(f"--- {part}")
        try:
            bench.found[part] = PARTS[part](bench)
        except Exception:
            traceback.print_exc()
            bench.found[part], whole = {"failed": True}, False
        bench.forget()
        say(f"--- {part}: {time.monotonic() - start:.1f} s")
        if target is not None:
            target.write_text(json.dumps(bench.found, indent=1))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--small", action="store_true", help="tiny models, a few rounds")
    parser.add_argument("--json", type=Path, help="where to write what was measured")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {unknown[0]}; valid: {', '.join(PARTS)}")
    if not torch.cuda.is_available() and not arguments.small:
        parser.error("torch sees no GPU here; try the script on the CPU with --small")
    allow_tf32(False)
    use_deterministic_algorithms()
    bench = Bench(arguments)
    sys.exit(0 if run(bench, arguments.parts or list(PARTS), arguments.json) else 1)


if __name__ == "__main__":
    main()
