"""`smt checkpoint`: the content of weights or of a checkpoint, and whether the file is whole."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smt.commands.common import load
from smt.errors import EXIT_DATA, UserError, listed
from smt.runs.checkpoint_files import CheckpointName

if TYPE_CHECKING:
    from torch import Tensor

    from smt.models.imports.metadata import TrainingMetadata


_DAMAGED = "DAMAGED"


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
def command(path: Path) -> None:
    """Show the content of PATH, and verify it.

    PATH is a checkpoint of a training, exported weights (model.safetensors), a released checkpoint
    (.pth), or a folder: of a run, or any above. Nothing in a file is run; one that carries code is
    refused. Of a released checkpoint, and of weights converted from one, it also tells what the
    counters of BatchNorm say of the training, and whether the epoch and the configuration that the
    file records agree. Exit code 3 if something is damaged, or its weights are not finite.
    """
    if path.is_dir():
        whole = _folder(path)
    elif path.is_file():
        whole = _file(path)
    else:
        raise UserError(f"{path}: no such file or folder")
    sys.exit(0 if whole else EXIT_DATA)


def _folder(folder: Path) -> bool:
    """Print a line for each checkpoint and each exported file below `folder`."""
    files = sorted(folder.rglob("*.safetensors"))
    damaged = 0
    for path in files:
        name = CheckpointName.parse(path)
        damage = _damage(path) or _not_finite(path)
        damaged += damage is not None
        where = path.relative_to(folder)
        if name is not None:
            where = where.with_name(f"step {name.step}, {name.epochs} epochs closed")
        size = f"{path.stat().st_size / 2**20:.1f} MB"
        click.echo(f"{'whole' if damage is None else 'DAMAGED'}  {size:>10}  {where}")
    if not files:
        raise UserError(f"{folder}: no checkpoint or weights in it (*.safetensors)")
    click.echo(f"{len(files)} files, {damaged} damaged")
    return damaged == 0


def _file(path: Path) -> bool:
    from smt.models.imports import file_kind

    if path.suffix != ".safetensors" or file_kind.is_torch(path):
        lines, damage = _foreign(path), None
    else:
        lines = _weights(path) if CheckpointName.parse(path) is None else _checkpoint(path)
        damage = _damage(path)
    rows = list(lines) if damage is None else [(_DAMAGED, damage)]
    click.echo(str(path))
    for key, value in rows:
        click.echo(f"  {key + ':' if key == _DAMAGED else key:<12} {value}")
    return all(key != _DAMAGED for key, _ in rows)


def _damage(path: Path) -> str | None:
    """Return the damage of a file, or None; the digest of exported weights is in metrics.json."""
    from safetensors import SafetensorError, safe_open

    from smt.engine import checkpoint
    from smt.models.imports import file_kind
    from smt.runs import record
    from smt.runs.atomic import sha256

    if CheckpointName.parse(path) is not None:
        return checkpoint.damage_of(path)
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        return file_kind.problem_of(path) or f"not a whole safetensors file ({error})"
    beside = path.with_name("metrics.json")
    try:
        final = record.read(record.RunMetrics, beside, "smt status says what to do")
    except record.DamagedRecord as damage:
        return f"cannot be compared with its digest: {damage}"
    if final is not None and final.weights_sha256 != sha256(path):
        return f"not the file that {beside} names: its SHA-256 differs"
    return None


def _checkpoint(path: Path) -> Iterator[tuple[str, str]]:
    from smt.engine import checkpoint
    from smt.engine.progress import duration

    content = checkpoint.read(path)
    facts = content.facts
    yield "kind", "checkpoint of a training; whole: its SHA-256 is its name's"
    yield from facts["identity"].items()
    yield "position", f"step {content.step}, {content.epochs} epochs closed"
    yield "trained", duration(facts["seconds"])
    if facts["best"] is not None:
        yield "best", f"{facts['best']:.4g} at step {facts['best_step']}"
    yield "journal", f"{facts['journal']['lines']} lines, {facts['journal']['bytes']} bytes"
    yield "skipped", f"{facts['trend']['skipped']} steps"
    for part in ("model", "optimizer"):
        yield part, _sizes({k: v for k, v in content.tensors.items() if k.startswith(f"{part}.")})
    yield from _broken(content.tensors)


def _weights(path: Path) -> Iterator[tuple[str, str]]:
    from smt.models import released, weights
    from smt.runs.atomic import sha256

    state, metadata = weights.read(path), weights.metadata(path)
    facts = released.stored_metadata(metadata)
    beside = path.with_name("metrics.json")
    yield "kind", "weights" + (f"; the file that {beside} names" if beside.exists() else "")
    yield "sha256", sha256(path)
    for key, value in metadata.items():
        if key != "source" or not facts.to_json():
            yield _printable(key), _printable(value)
    yield "model", _sizes(state)
    yield from _broken(state)
    if "converted_from" in metadata:
        yield from _recorded(facts)
        # A head that was cut down does not tell the classes that were trained.
        classes = None if "class_map" in metadata else weights.classes(state)
        yield from _counted(state, classes, facts)


def _foreign(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the content of a foreign checkpoint, also where smt convert needs more options."""
    from smt.models import released
    from smt.models.imports import torch_file, unwrap

    content = torch_file.read(path)
    states = unwrap.states(content.tree)
    facts = released.training_metadata(content)
    try:
        extracted = released.take(content, path)
    except UserError as error:
        if not states:
            raise
        yield "kind", f"no state that smt convert takes by itself: {error}"
        yield from _states(states)
        yield from _recorded(facts)
        return
    smt = unwrap.is_smt(extracted.state)
    if smt:
        yield "kind", "released checkpoint; bring it in by: smt convert"
    else:
        yield "kind", f"checkpoint, not of an SMT by its names: {listed(extracted.state, 3)}"
    for note in extracted.notes:
        yield "note", note
    yield from _states(states)
    yield from _recorded(facts)
    if smt:
        yield from _counted(extracted.state, extracted.classes, facts)


def _states(states: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    from torch import Tensor

    for key, state in states.items():
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        name = listed([key]) if key else "model"
        yield name, _sizes(tensors)
        for damaged, broken in _broken(tensors):
            yield damaged, f"{name}: {broken}" if len(states) > 1 else broken


def _recorded(facts: "TrainingMetadata") -> Iterator[tuple[str, str]]:
    """Yield the metadata of a training in a file: single values, learning rate, configuration."""
    from smt.models.imports.metadata import flat

    done = facts.epochs_done
    notes = {
        "epoch": f" (counted from 0: {done:,} done)" if done is not None else "",
        "max_accuracy": " (the release saves an epoch before it validates it: of those before)",
    }
    for key, value in facts.recorded.items():
        yield _printable(key), _printable(value) + notes.get(key, "")
    if "lr" in facts.optimizer:
        yield "lr", f"{_printable(facts.optimizer['lr'])} (the last of the optimizer)"
    if facts.optimizer_steps is not None:
        yield "optimizer", f"{facts.optimizer_steps:,} steps"
    top = {key: value for key, value in facts.config.items() if not isinstance(value, Mapping)}
    sections = ((f"config.{_printable(key)}", value) for key, value in facts.config.items())
    for name, values in (("config", top), *sections):
        if isinstance(values, Mapping) and values:
            pairs = flat(values)
            yield name, ", ".join(f"{_printable(key)}={_printable(entry)}" for key, entry in pairs)


def _counted(
    state: Mapping[str, "Tensor"], classes: int | None, facts: "TrainingMetadata"
) -> Iterator[tuple[str, str]]:
    """Yield the training that BatchNorm's counters imply, compared with the file's metadata."""
    from smt.models.imports import counters

    counts = counters.counts(state)
    if not counts:
        return
    (count, layers), *others = sorted(counts.items(), key=lambda item: -len(item[1]))
    passes = "forward passes in training, by num_batches_tracked of"
    yield "counters", f"{count:,} {passes} {len(layers)} BatchNorm layers"
    for other, names in others:
        yield "DIFFERS", f"{other:,} {passes} {listed(names)}"
    project, _ = load("paper")
    explained = counters.explain(project, count, classes or None, facts)
    yield "which means", explained.meaning
    for statement in explained.agrees:
        yield "agrees", statement
    for statement in explained.contradictions:
        yield "CONTRADICTS", statement


def _broken(tensors: Mapping[str, "Tensor"]) -> Iterator[tuple[str, str]]:
    """Yield a line on tensors that are not finite, if there are any."""
    from smt.models.imports import values

    broken = values.not_finite(tensors)
    if broken is not None:
        yield _DAMAGED, broken


def _not_finite(path: Path) -> str | None:
    """Return which tensors of a safetensors file are not finite, or None."""
    from smt.models import weights
    from smt.models.imports import values

    return values.not_finite(weights.read(path))


def _printable(value: Any) -> str:
    """Return a value of a foreign file on one line, without control characters."""
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() else ascii(text)


def _sizes(tensors: Mapping[str, "Tensor"]) -> str:
    values = sum(tensor.numel() for tensor in tensors.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    kinds = ", ".join(sorted(dtypes))
    return f"{len(tensors)} tensors, {values:,} values of {kinds or 'nothing'}, {size:,} bytes"
