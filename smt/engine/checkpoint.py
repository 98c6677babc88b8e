"""Checkpoints: tensors and JSON in one safetensors file, named by position and digest.

A file gets its name only when it is complete and on disk, and the name holds its SHA-256, so a file
that was truncated or changed is recognised. Safetensors, unlike pickles, cannot run code.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from smt.errors import EXIT_TRAINING, TrainingError, UserError
from smt.runs import milestones
from smt.runs.atomic import Permit, publish, sha256
from smt.runs.checkpoint_files import CheckpointName, checkpoints_in

log = logging.getLogger(__name__)

KEEP = 2
"""Checkpoints kept: the newest, and one to fall back to."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after `step` global steps and `epochs` closed epochs."""

    step: int
    epochs: int
    tensors: Mapping[str, torch.Tensor]
    """Contiguous, on the CPU."""
    facts: Mapping[str, Any]
    """All that is not a tensor, as JSON values."""

    @property
    def all_facts(self) -> dict[str, Any]:
        """The facts as a file holds them: with the position."""
        return {**self.facts, "step": self.step, "epochs": self.epochs}

    def digest(self) -> str:
        """Return the SHA-256 of the state, which a milestone records."""
        tensors = (
            milestones.TensorBytes(name, _DTYPES[value.dtype], tuple(value.shape), _bytes(value))
            for name, value in self.tensors.items()
        )
        return milestones.state_digest(tensors, self.all_facts)


_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Types of tensors, as safetensors names them."""


def _bytes(value: torch.Tensor) -> Any:
    return value.reshape(-1).view(torch.uint8).numpy()


def write(
    folder: Path,
    checkpoint: Checkpoint,
    best_step: int | None = None,
    permit: Permit | None = None,
    kept: Collection[tuple[int, int]] = (),
) -> Path:
    """Write a checkpoint, then remove those older than the last `KEEP`.

    That of `best_step` stays, and so do those `kept`, by their steps and closed epochs. It gets its
    name unless `permit` raises: see `atomic.publish`.

    Raises:
        OSError: the disk is full or the folder cannot be written; older checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".step-{checkpoint.step:010d}.{os.getpid()}.tmp"
    try:
        _save(checkpoint.tensors, temporary, checkpoint.all_facts)
        path = folder / str(CheckpointName(checkpoint.step, checkpoint.epochs, sha256(temporary)))
        publish(temporary, path, permit)
    finally:
        temporary.unlink(missing_ok=True)
    _prune(folder, best_step, kept)
    return path


def _save(tensors: Mapping[str, torch.Tensor], path: Path, facts: Mapping[str, Any]) -> None:
    try:
        # It writes from the tensors' own memory, and leaves Python to the training meanwhile.
        save_file(dict(tensors), path, {"facts": json.dumps(facts)})
    except SafetensorError as error:
        cause = _OS_ERROR.search(str(error))
        if cause is None:
            raise
        raise OSError(int(cause[1]), os.strerror(int(cause[1])), str(path)) from None


def _prune(folder: Path, best_step: int | None, kept: Collection[tuple[int, int]]) -> None:
    names = {path: CheckpointName.of(path) for path in checkpoints_in(folder)}
    paths = list(names)
    best = [path for path in paths if names[path].step == best_step]
    stay = {*paths[:KEEP], *best[:1]}
    for path, name in names.items():
        if path not in stay and (name.step, name.epochs) not in kept:
            path.unlink()


def remove_temporary_files(folder: Path) -> None:
    """Remove what writers that were killed left half-written. Call it when nobody writes."""
    for path in folder.glob(".step-*.tmp"):
        path.unlink(missing_ok=True)


class Writer:
    """Writes checkpoints in a thread, one at a time and in order, while the training continues.

    A checkpoint is handed over as a copy, so the training stops for the copy alone. `permit` is as
    for `write`.
    """

    def __init__(self, folder: Path, permit: Permit | None = None) -> None:
        self._folder, self._permit = folder, permit
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def submit(
        self,
        checkpoint: Checkpoint,
        best_step: int | None,
        kept: Collection[tuple[int, int]],
        before: Callable[[], object],
        after: Callable[[], object],
    ) -> None:
        """Start writing; `before` runs first in the thread (what must be on disk earlier).

        `after` runs once the checkpoint is on disk.

        Call `wait` first: the tensors of the checkpoint before may lie in the same memory.
        """
        assert self._pending is None

        def work() -> Path:
            before()
            path = write(self._folder, checkpoint, best_step, self._permit, kept)
            after()
            return path

        self._pending = self._thread.submit(work)

    @property
    def exit_code(self) -> int:
        """Not 0 if the last checkpoint could not be written: the code for all ranks to exit with.

        `wait` raises why.
        """
        if self._pending is None or not self._pending.done():
            return 0
        error = self._pending.exception()
        if isinstance(error, UserError):
            return error.exit_code
        return EXIT_TRAINING if error is not None else 0

    def wait(self) -> None:
        """Return when the last checkpoint is on disk.

        Raises:
            OSError: it could not be written.
            Exception: that of `permit`.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """End the thread after what it is writing."""
        self._thread.shutdown(wait=True)


def load_newest(
    folder: Path, refusal: Callable[[Mapping[str, Any]], str | None] = lambda facts: None
) -> Checkpoint | None:
    """Return the newest checkpoint whose bytes are those that were written; None without any.

    A damaged one is left where it is, named in the log, and the one before it is tried. So is one
    whose facts `refusal` does not accept: it returns why, in a phrase.

    Raises:
        TrainingError: there are checkpoints, and none of them can be used.
    """
    paths = checkpoints_in(folder)
    for path in paths:
        problem = damage_of(path) or refusal(facts_of(path))
        if problem is None:
            return read(path)
        log.warning("%s %s; trying the one before", path, problem)
    if paths:
        raise TrainingError(
            f"{folder}: all {len(paths)} checkpoints are damaged; bring one back from a backup, "
            "or move the folder aside to train from the start"
        )
    return None


def damage_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, in a phrase, or None if its bytes are right."""
    if sha256(path) != CheckpointName.of(path).sha256:
        return "is damaged (its SHA-256 is not its name's)"
    try:
        facts_of(path)
    except (SafetensorError, KeyError, ValueError) as error:
        return f"cannot be read ({error})"
    return None


def facts_of(path: Path) -> dict[str, Any]:
    """Return all that a checkpoint holds besides its tensors."""
    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads((file.metadata() or {})["facts"])
    return facts


def read(path: Path) -> Checkpoint:
    """Return the content of a checkpoint whose bytes are right."""
    facts = facts_of(path)
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    return Checkpoint(facts.pop("step"), facts.pop("epochs"), tensors, facts)
