"""`smt rehearse`: training steps at full size on a fake GPU, before a GPU-hour is spent."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smt.commands.common import gpu_kind, load
from smt.config.cluster import Gpu
from smt.config.load import require_experiments
from smt.errors import EXIT_TRAINING
from smt.runs.atomic import explained, write_json

if TYPE_CHECKING:
    from smt.rehearsal.run import Rehearsal

GIB = 2**30

_BESIDE_TENSORS = 2 * GIB
"""Of a card's memory, for CUDA's context and kernels' workspaces: assumed."""


@click.command()
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...")
@click.option("--gpu", metavar="KIND", help="Kind of GPU in params/cluster.yaml [the one in use].")
@click.option("--waits", is_flag=True, help="Print where the host waits for the GPU.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the results there.")
@click.option("--scale", default="paper", show_default=True, help="Scale of params/scales.yaml.")
def command(
    experiments: tuple[str, ...], gpu: str | None, waits: bool, target: Path | None, scale: str
) -> None:
    """Take two training steps and a prediction of each EXPERIMENT (all by default) on a fake GPU.

    Network, loss, clipping, optimizer and loss scaler are the real ones; tensors have a shape, a
    type and a device, but no data, so a laptop without a GPU can do it. Found this way: tensors on
    the wrong device or of the wrong type, parameters without a gradient, memory that the card does
    not have. Not found: speed, numbers, and what a kernel needs beside its tensors. Exit 4 if an
    experiment fails or does not fit.
    """
    project, _ = load(scale)
    require_experiments(project, experiments)
    card = project.cluster.kinds[gpu_kind(project, gpu)]

    from smt.rehearsal.run import rehearse

    results, refused = [], 0
    for name in experiments or project.order:
        result = rehearse(project, name)
        results.append(result)
        fault = _fault(result, card)
        refused += fault is not None
        click.echo(_line(result, fault))
        if waits:
            for place, count in result.waits.items():
                click.echo(f"    {count} x {place}")
    if target is not None:
        with explained(target, "give a file that can be written: smt rehearse --json FILE"):
            write_json(target, [asdict(result) for result in results])
    click.echo(
        f"{len(results)} rehearsed for {card.title} ({card.memory_gb:g} GB), {refused} refused; "
        f"peaks are of tensors alone, {_BESIDE_TENSORS // GIB} GiB are left for CUDA and kernels"
    )
    if refused:
        raise SystemExit(EXIT_TRAINING)


def _line(result: "Rehearsal", fault: str | None) -> str:
    head = f"{result.experiment}: {result.precision}, {result.images} images"
    if result.failure:
        return f"{head}: FAILED: {result.failure}"
    text = (
        f"{head}: training {_gib(result.training_bytes)} at {result.training_at}, prediction "
        f"{_gib(result.prediction_bytes)}; a step: {sum(result.waits.values())} waits, "
        f"{result.kernels:,} kernels, {_gib(result.traffic_bytes)} moved"
    )
    return text if fault is None else f"{text}: REFUSED: {fault}"


def _fault(result: "Rehearsal", card: Gpu) -> str | None:
    """Return why an experiment cannot be trained as it is, with what would mend it; or None."""
    if result.failure:
        return result.failure
    if result.without_gradient:
        names = ", ".join(result.without_gradient[:3])
        return f"{len(result.without_gradient)} parameters get no gradient: {names}"
    limit = int(card.memory_gb * 1e9) - _BESIDE_TENSORS
    if result.training_bytes > limit:
        return (
            f"a card of {card.memory_gb:g} GB has {_gib(limit)} for tensors; lower device_batch of "
            "its recipe (the global batch stays: more micro-batches a step), or take another GPU"
        )
    return None


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f} GiB"
