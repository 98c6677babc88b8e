"""Checkpoints: tensors and JSON in one safetensors file, named by step and digest.

A file takes its name only when it is whole and on disk, and the name holds its SHA-256, so a file
that was torn or changed is known for what it is. Nothing in it can carry code.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from smt.files import replacing, sha256

log = logging.getLogger(__name__)

KEEP = 2
"""Checkpoints kept: the newest, and one to fall back to."""

_NAME = re.compile(r"^step-(\d{10})-([0-9a-f]{64})\.safetensors$")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after `step` global steps."""

    step: int
    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]
    """All that is not a tensor, as JSON values."""


def write(folder: Path, checkpoint: Checkpoint, best_step: int | None = None) -> Path:
    """Write a checkpoint, then remove those older than the last `KEEP`, save that of `best_step`.

    Raises:
        OSError: the disk is full or the folder cannot be written; older checkpoints stay.
    """
    facts = {"facts": json.dumps({"step": checkpoint.step, **checkpoint.facts})}
    content = save({k: v.contiguous() for k, v in checkpoint.tensors.items()}, facts)
    digest = hashlib.sha256(content).hexdigest()
    path = folder / f"step-{checkpoint.step:010d}-{digest}.safetensors"
    with replacing(path) as file:
        file.write(content)
    for old in names(folder)[KEEP:]:
        if step_of(old) != best_step:
            old.unlink()
    return path


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint."""
    match = _NAME.match(path.name)
    assert match is not None, path
    return int(match[1])


class Writer:
    """Writes checkpoints in a thread, one at a time and in order, while the training goes on.

    A checkpoint is handed over as a copy, so the training stops for the copy alone. An error of the
    thread is raised by the next call.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def submit(
        self, checkpoint: Checkpoint, best_step: int | None, before: Callable[[], object]
    ) -> None:
        """Start writing; `before` runs first in the thread (what must be on disk earlier).

        Waits for the checkpoint before this one, so that at most two are in memory.
        """
        self.wait()

        def work() -> Path:
            before()
            return write(self._folder, checkpoint, best_step)

        self._pending = self._thread.submit(work)

    def wait(self) -> None:
        """Return when the last checkpoint is on disk.

        Raises:
            OSError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """End the thread after what it is writing."""
        self._thread.shutdown(wait=True)


def names(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first, without opening them."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.match(path.name)), reverse=True)


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose bytes are those that were written, or None.

    One that fails is left where it is, said in the log, and the one before it is tried.
    """
    for path in names(folder):
        match = _NAME.match(path.name)
        assert match is not None
        if sha256(path) != match[2]:
            log.warning(
                "%s is damaged (its SHA-256 is not its name's); trying the one before", path
            )
            continue
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                return Checkpoint(
                    facts.pop("step"), {key: file.get_tensor(key) for key in file.keys()}, facts
                )
        except SafetensorError as error:
            log.warning("%s cannot be read (%s); trying the one before", path, error)
    return None
