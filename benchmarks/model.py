"""Inference, training step and peak memory of SMT against the plain baseline of `plain.py`.

`python benchmarks/model.py` loads the same weights into both, checks that they agree, then times
them in turn, round by round, and prints medians and ratios of one run. With `--threads 1` these are
of CPU time, which other work on the machine hardly changes. `--demo` takes the demo's
models instead of the paper's; `--compile` adds torch.compile, which needs a C++ compiler. Kernels
of a GPU and the bytes that they move are counted on fake tensors, the same on any machine without a
GPU; `--only traffic` counts these alone.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from plain import PlainSMT
from torch import Tensor, nn

from smt.config.load import load_project
from smt.config.models import Model
from smt.models import released, zoo
from smt.rehearsal.traffic import traffic
from smt.runs.paths import bundled_params

CLASSES = 1000
PLAIN, OURS = "plain", "ours"


def pair(model: Model) -> tuple[nn.Module, nn.Module]:
    """Return the baseline and ours with the same weights."""
    torch.manual_seed(0)
    ours = zoo.build(model, num_classes=CLASSES)
    plain = PlainSMT(model, CLASSES)
    plain.load_state_dict(released.to_released(ours.state_dict()))
    return plain, ours.to(memory_format=torch.channels_last)


def train_step(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Forward and backward; the optimizer's step is the same for both and left out."""
    F.cross_entropy(network(images), labels).backward()
    network.zero_grad(set_to_none=True)


def inference(network: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        network(images)


def seconds(call: Callable[[], None]) -> float:
    # The CPU time of one thread is that of the work, whatever else the machine does.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def compare(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the times of each call, called in turn so that a drift of the machine hits all."""
    for call in calls.values():
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def report(title: str, times: dict[str, list[float]]) -> None:
    """Print the median of each, and the median of the rounds' ratios to the baseline."""
    for name, values in times.items():
        ratios = [base / own_time for base, own_time in zip(times[PLAIN], values, strict=True)]
        print(
            f"{title:10} {name:14} {statistics.median(values) * 1e3:9.1f} ms   "
            f"{statistics.median(ratios):5.2f} times as fast as {PLAIN} "
            f"(rounds: {min(ratios):.2f} to {max(ratios):.2f})"
        )


def check(plain: nn.Module, ours: nn.Module, images: Tensor) -> None:
    """Exit if the outputs of the two differ."""
    plain.eval(), ours.eval()
    with torch.inference_mode():
        expected, output = plain(images), ours(images)
    difference = float((output - expected).abs().max() / expected.abs().max())
    print(f"agreement  {OURS:14} largest difference {difference:.1e} of the largest logit")
    if difference > 1e-4:
        sys.exit(f"benchmark: {OURS} and {PLAIN} do not compute the same")


def peak_growth_mb(arguments: argparse.Namespace, system: str, mode: str) -> float:
    """Return how far the peak memory of a fresh process grows over the model's own, in MB."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory", system, mode]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(process.stdout)


def print_peak_growth(arguments: argparse.Namespace, model: Model) -> None:
    """In the fresh process: one call after the model is made, and what it added to the peak."""
    system, mode = arguments.memory
    network = pair(model)[system == OURS]
    images, labels = inputs(arguments, arguments.batch)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of building models
    before = memory_kb("VmRSS")
    if mode == "training":
        train_step(network.train(), images, labels)
    else:
        inference(network.eval(), images)
    print((memory_kb("VmHWM") - before) / 1024)


def memory_kb(field: str) -> int:
    """Return a field of this process's status: VmRSS is what it has now, VmHWM the peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0])


def inputs(arguments: argparse.Namespace, batch: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    images = torch.randn(batch, 3, arguments.resolution, arguments.resolution)
    return images, torch.randint(CLASSES, (batch,))


def print_traffic(arguments: argparse.Namespace, model: Model) -> None:
    """Count what a GPU would do for a batch under autocast in fp16."""
    for mode in ("inference", "training"):
        counts = {}
        for index, system in enumerate((PLAIN, OURS)):
            network = pair(model)[index].train(mode == "training")
            images, labels = inputs(arguments, arguments.traffic_batch)
            if system == OURS:
                images = images.to(memory_format=torch.channels_last)
            call = train_in_half if mode == "training" else infer_in_half
            counts[system] = traffic(network, call, images, labels)
            print(
                f"traffic    {mode:10} {system:8} {counts[system].bytes / 2**30:6.2f} GiB by "
                f"{counts[system].kernels:,} kernels, {counts[system].casts} of them casts"
            )
        print(
            f"traffic    {mode:10} {counts[OURS].bytes / counts[PLAIN].bytes:.2f} of the bytes and "
            f"{counts[OURS].kernels / counts[PLAIN].kernels:.2f} of the kernels of {PLAIN}"
        )


def train_in_half(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    with torch.autocast("cuda", torch.float16):
        loss = F.cross_entropy(network(images).float(), labels)
    loss.backward()


def infer_in_half(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    with torch.inference_mode(), torch.autocast("cuda", torch.float16):
        network(images)


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("--model", default="smt_tiny")
    parser.add_argument("--demo", action="store_true", help="the demo's model of that name")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--traffic-batch", type=int, default=128, help="images of the GPU's batch")
    parser.add_argument("--only", choices=["traffic"], help="count traffic, time nothing")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of(argparse.ArgumentParser(description=__doc__))
    torch.set_num_threads(arguments.threads)
    params: Path = bundled_params()
    model = load_project(params, "demo" if arguments.demo else "paper").models[arguments.model]
    if arguments.memory:
        print_peak_growth(arguments, model)
        return
    if arguments.only:
        print_traffic(arguments, model)
        return
    plain, ours = pair(model)
    images, labels = inputs(arguments, arguments.batch)
    last = images.to(memory_format=torch.channels_last)
    print(
        f"{arguments.model}, batch {arguments.batch}, {arguments.resolution} px, "
        f"{arguments.threads} threads, torch {torch.__version__}, float32"
    )
    check(plain, ours, images)
    runners = {PLAIN: (plain, images), OURS: (ours, last)}
    if arguments.compile:
        runners["ours, compiled"] = (torch.compile(ours), last)
    calls = {
        name: lambda network=network, x=x: inference(network, x)
        for name, (network, x) in runners.items()
    }
    report("inference", compare(calls, arguments.rounds))
    plain.train(), ours.train()
    calls = {
        name: lambda network=runners[name][0], x=runners[name][1]: train_step(network, x, labels)
        for name in runners
    }
    report("training", compare(calls, arguments.rounds))
    for mode in ("inference", "training"):
        growth = {system: peak_growth_mb(arguments, system, mode) for system in (PLAIN, OURS)}
        print(
            f"memory     {mode:14} peak growth {growth[OURS]:.0f} MB, {PLAIN} "
            f"{growth[PLAIN]:.0f} MB: {growth[OURS] / growth[PLAIN]:.2f} of it"
        )
    print_traffic(arguments, model)


if __name__ == "__main__":
    main()
