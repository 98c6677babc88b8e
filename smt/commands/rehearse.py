"""`smt rehearse`: training steps at full size on a fake GPU, before a GPU-hour is spent."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smt.commands.common import announce, gpu_kind, load
from smt.config.load import require_experiments
from smt.config.project import Project
from smt.errors import EXIT_TRAINING
from smt.runs.atomic import explained, require_writable, write_json
from smt.runs.paths import Layout

if TYPE_CHECKING:
    from smt.rehearsal.memory import Fit


@click.command()
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...")
@click.option("--gpu", metavar="KIND", help="Kind of GPU in params/cluster.yaml [the one in use].")
@click.option("--recompute", is_flag=True, help="As with `recompute: true` in the recipe.")
@click.option("--waits", is_flag=True, help="Print where the host waits for the GPU.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the results there.")
@click.option("--exit-zero", is_flag=True, help="Exit 0 where an experiment does not fit.")
@click.option(
    "--table",
    "tabulate",
    is_flag=True,
    help="Rehearse only what was not yet, and write the table of all, with what would help.",
)
@click.option("--scale", default="paper", show_default=True, help="Scale of params/scales.yaml.")
def command(
    experiments: tuple[str, ...],
    gpu: str | None,
    recompute: bool,
    waits: bool,
    target: Path | None,
    exit_zero: bool,
    tabulate: bool,
    scale: str,
) -> None:
    """Take two training steps and a prediction of each EXPERIMENT (all by default) on a fake GPU.

    Network, loss, clipping, optimizer and loss scaler are the real ones; tensors have a shape, a
    type and a device, but no data, so a laptop without a GPU can do it. Batches are the largest
    that can come. Found this way: tensors on the wrong device or of the wrong type, parameters
    without a gradient, memory that the card does not have. Not found: speed, numbers, and what a
    kernel needs beside its tensors. Exit 4 if an experiment fails or does not fit.
    """
    project, layout = load(scale)
    require_experiments(project, experiments)
    project = project.on_gpu(gpu_kind(project, gpu))
    names = experiments or project.order
    remedy = "give a file that can be written: smt rehearse --json FILE"
    if target is not None:
        require_writable(target, remedy)
    if tabulate:
        _write_table(project, layout, names)
        return

    from smt.rehearsal.memory import BESIDE_TENSORS, GIB, Fit, Rehearsed, room

    rehearsed, card, fits = Rehearsed(project, layout), project.cluster.kind, []
    for name in names:
        fits.append(Fit(rehearsed.rehearse(name, recompute=recompute or None), room(card)))
        _print(fits[-1], waits)
    if target is not None:
        with explained(target, remedy):
            write_json(target, [fit.rehearsal.as_json() for fit in fits])
    refused = [fit for fit in fits if not fit.fits]
    click.echo(
        f"{len(fits)} rehearsed for {card.title} ({card.memory_gb:g} GB), {len(refused)} refused; "
        f"peaks are of tensors alone, {BESIDE_TENSORS // GIB} GiB are left for CUDA and kernels"
    )
    if any(fit.rehearsal.fault or not exit_zero for fit in refused):
        raise SystemExit(EXIT_TRAINING)


def _print(fit: "Fit", waits: bool) -> None:
    click.echo(_line(fit))
    if waits:
        for place, count in fit.rehearsal.waits.items():
            click.echo(f"    {count} x {place}")


def _line(fit: "Fit") -> str:
    from smt.rehearsal.memory import gib

    done = fit.rehearsal
    head = f"{done.experiment}: {done.precision}, {done.images} images of {done.size[0]} x "
    head += f"{done.size[1]}{', recomputed' if done.recompute else ''}"
    if done.failure:
        return f"{head}: FAILED: {done.failure}"
    text = (
        f"{head}: training {gib(done.training_bytes)} at {done.training_at}, prediction "
        f"{gib(done.prediction_bytes)}; a step: {sum(done.waits.values())} waits, "
        f"{done.kernels:,} kernels ({done.casts:,} casts), {gib(done.traffic_bytes)} moved; the "
        f"prediction: {done.prediction_kernels:,} kernels, {gib(done.prediction_traffic_bytes)} "
        "moved"
    )
    if fit.fits:
        return text
    help_line = "" if done.fault else "; what would help: smt plan --memory"
    return f"{text}: REFUSED: {fit.fault}{help_line}"


def _write_table(project: Project, layout: Layout, names: tuple[str, ...]) -> None:
    from smt.rehearsal import table
    from smt.rehearsal.memory import Rehearsed, fit
    from smt.report import render

    rehearsed = Rehearsed(project, layout, announce)
    fits = [fit(rehearsed, name) for name in names]
    paths = render.write(table.grid(project, fits), layout.rehearsals)
    click.echo(f"{len(paths)} files in {layout.rehearsals}; begin with {paths[-1]}")
    for each in fits:
        if not each.fits:
            click.echo(f"{each.rehearsal.experiment} does not fit: {each.fault}")
