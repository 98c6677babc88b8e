"""Images a second of inference of every SMT variant, for the table `throughput`.

`python benchmarks/throughput.py` measures on this machine's GPU, or with `--device cpu` or without
one on its CPU: eager, at 224, images that stay on the device, the median of `--rounds` batches. It
writes one file, named after machine and setting, into results/benchmarks/ (SMT_RESULTS is another
results folder), and `smt tables throughput` sets it beside published numbers.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from smt.config.load import load_project
from smt.engine.device import allow_tf32
from smt.models import zoo
from smt.report import throughput
from smt.report.throughput import ThroughputRecord
from smt.runs import provenance
from smt.runs.paths import Layout, bundled_params

VARIANTS = ("smt_tiny", "smt_small", "smt_base", "smt_large")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
RESOLUTION = 224
WARM_UP = 2


def rate(model: nn.Module, device: torch.device, precision: str, batch: int, rounds: int) -> float:
    """Return images a second, the median over `rounds` batches."""
    images = torch.randn(batch, 3, RESOLUTION, RESOLUTION, device=device)
    images = images.to(memory_format=torch.channels_last)
    half = precision != "fp32"
    times = []
    with torch.inference_mode(), torch.autocast(device.type, DTYPES[precision], enabled=half):
        for _ in range(WARM_UP + rounds):
            start = time.perf_counter()
            model(images)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return batch / statistics.median(times[WARM_UP:])


def machine(device: torch.device) -> str:
    """Return the name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return provenance.hardware([]).processor


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--batch", type=int, default=64, help="[64, as the published numbers]")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU [1]")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--models", nargs="+", choices=VARIANTS, default=VARIANTS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not cuda:
        parser.error("torch sees no GPU here; valid: --device cpu")
    for name in ("batch", "threads", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)}: valid: 1 or more")
    return arguments


def main() -> None:
    arguments = arguments_of(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    allow_tf32(False)
    models = load_project(bundled_params(), "paper").models
    rates = {}
    for name in arguments.models:
        network = zoo.build(models[name], num_classes=1000).eval().to(device)
        network = network.to(memory_format=torch.channels_last)
        rates[name] = rate(network, device, arguments.precision, arguments.batch, arguments.rounds)
        print(f"{models[name].title:6} {rates[name]:9.1f} images/s", flush=True)
    measured = ThroughputRecord(
        machine=machine(device),
        device=device.type,
        threads=arguments.threads if device.type == "cpu" else None,
        precision=arguments.precision,
        batch=arguments.batch,
        resolution=RESOLUTION,
        torch=torch.__version__,
        rates=rates,
    )
    path = throughput.write(Layout.from_environment("paper"), measured)
    print(f"{path}; for the table: smt tables {throughput.NAME}")


if __name__ == "__main__":
    main()
