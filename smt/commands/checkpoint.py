"""`smt checkpoint`: what a file of weights or a checkpoint holds, and whether it is whole."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smt.errors import EXIT_DATA, DataError, UserError

if TYPE_CHECKING:
    from torch import Tensor


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
def command(path: Path) -> None:
    """Tell what PATH holds, and verify it.

    PATH is a checkpoint of a training, exported weights (model.safetensors), a released checkpoint
    (.pth), or a folder: of a run, or any above. Nothing in a file is run; one that carries code is
    refused. Exit code 3 if something is damaged.
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
    from smt.engine import checkpoint

    files = sorted(folder.rglob("*.safetensors"))
    damaged = 0
    for path in files:
        name = checkpoint.Name.of(path)
        damage = _damage(path)
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
    from smt.engine import checkpoint

    if path.suffix != ".safetensors":
        lines = _released(path)
    elif checkpoint.Name.of(path) is not None:
        lines = _checkpoint(path)
    else:
        lines = _weights(path)
    damage = _damage(path)
    click.echo(str(path))
    if damage is not None:
        click.echo(f"  DAMAGED: {damage}")
        return False
    for key, value in lines:
        click.echo(f"  {key:<13}{value}")
    return True


def _damage(path: Path) -> str | None:
    """Return what is wrong with a file, or None; exported weights have their digest beside them."""
    from safetensors import SafetensorError, safe_open

    from smt.engine import checkpoint
    from smt.files import read_json, sha256

    if path.suffix != ".safetensors":
        return None
    if checkpoint.Name.of(path) is not None:
        return checkpoint.damage_of(path)
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        return f"not a whole safetensors file ({error})"
    said = (read_json(path.with_name("metrics.json")) or {}).get("weights_sha256")
    if said is not None and said != sha256(path):
        return f"not the file that {path.with_name('metrics.json')} names: its SHA-256 differs"
    return None


def _checkpoint(path: Path) -> Iterator[tuple[str, str]]:
    from smt.engine import checkpoint
    from smt.engine.progress import duration

    held = checkpoint.read(path)
    facts = held.facts
    yield "kind", "checkpoint of a training; whole: its SHA-256 is its name's"
    yield from facts["identity"].items()
    yield "position", f"step {held.step}, {held.epochs} epochs closed"
    yield "trained", duration(facts["seconds"])
    if facts["best"] is not None:
        yield "best", f"{facts['best']:.4g} at step {facts['best_step']}"
    yield "journal", f"{facts['journal']['lines']} lines, {facts['journal']['bytes']} bytes"
    yield "skipped", f"{facts['trend']['skipped']} steps"
    for part in ("model", "optimizer"):
        yield part, _sizes({k: v for k, v in held.tensors.items() if k.startswith(f"{part}.")})


def _weights(path: Path) -> Iterator[tuple[str, str]]:
    from safetensors import safe_open

    from smt.files import sha256
    from smt.models import weights

    state = weights.read(path)
    with safe_open(path, framework="pt") as file:
        metadata = json.loads((file.metadata() or {}).get("smt", "{}"))
    beside = path.with_name("metrics.json")
    yield "kind", "weights" + (f"; the file that {beside} names" if beside.exists() else "")
    yield "sha256", sha256(path)
    yield from metadata.items()
    yield "model", _sizes(state)


def _released(path: Path) -> Iterator[tuple[str, str]]:
    from smt.models import released

    state = released.read(path)
    if not state:
        raise DataError(f"{path}: no tensors in it")
    yield "kind", "released checkpoint; bring it in by: smt convert"
    yield "model", _sizes(state)


def _sizes(tensors: Mapping[str, "Tensor"]) -> str:
    values = sum(tensor.numel() for tensor in tensors.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    kinds = ", ".join(sorted({str(each.dtype).removeprefix("torch.") for each in tensors.values()}))
    return f"{len(tensors)} tensors, {values:,} values of {kinds or 'nothing'}, {size:,} bytes"
