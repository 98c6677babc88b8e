"""Milestones: checkpoints that are kept for an audit, with digests of their states in the journal.

The journal's line of a milestone holds two digests: that of the state, and that of all lines before
it. So each milestone commits to those before it: a line that is changed, removed or moved breaks
the next one's. The start of a training has no such line: it follows from seed and parent.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from smt.errors import EXIT_UNVERIFIED, UserError
from smt.runs import shared_folder
from smt.runs.journal import JOURNAL, MILESTONE

_VARYING = {"seconds", "journal"}
"""Facts of a checkpoint that are not of its state: wall time differs between two trainings, and the
position in the journal lies after the line with the digest."""


def epochs(total: int, count: int) -> frozenset[int]:
    """Return the epochs of a training after which to keep a milestone: `count`, evenly spaced.

    The last is the end. A training has no more of them than epochs.
    """
    count = min(count, total)
    return frozenset(total * number // count for number in range(1, count + 1))


class TensorBytes(NamedTuple):
    """A tensor of a state, as its digest is taken of it."""

    name: str
    dtype: str
    """As safetensors names it: F32, I64."""
    shape: tuple[int, ...]
    content: Any
    """Its bytes: whatever gives a contiguous buffer."""


def state_digest(tensors: Iterable[TensorBytes], facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a training's state: its tensors in the order of their names, and facts.

    Equal for two trainings that have come to the same bits, at whatever speed.
    """
    kept = {key: value for key, value in facts.items() if key not in _VARYING}
    digest = hashlib.sha256(_line(kept))
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        digest.update(_line([tensor.name, tensor.dtype, tensor.shape]))
        digest.update(tensor.content)
    return digest.hexdigest()


def _line(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n").encode()


@dataclass(frozen=True)
class Milestone:
    """A milestone as the journal records it; the start of a training has no digests."""

    step: int = 0
    epochs: int = 0
    """Closed epochs."""
    state_sha256: str = ""
    line: int = 0
    """Of the journal, from 1."""
    end: int = 0
    """Bytes of the journal up to the end of that line."""


@dataclass(frozen=True)
class Stretch:
    """A part of a training: from one milestone, or from the start, to the next."""

    number: int
    """From 1."""
    start: Milestone
    end: Milestone

    @property
    def steps(self) -> int:
        """Global steps in it."""
        return self.end.step - self.start.step

    def __str__(self) -> str:
        return f"stretch {self.number} (steps {self.start.step} to {self.end.step})"


def stretches(milestones: Iterable[Milestone]) -> list[Stretch]:
    """Return the stretches between the start and each of the milestones."""
    pairs = pairwise([Milestone(), *milestones])
    return [Stretch(number, start, end) for number, (start, end) in enumerate(pairs, 1)]


class BrokenChain(UserError):
    """A journal whose milestones are not as a training writes them; the message names the line."""

    exit_code = EXIT_UNVERIFIED


def read(folder: Path) -> list[Milestone]:
    """Return the milestones in the journal of a work folder; none where there is no journal.

    Raises:
        BrokenChain: a line is damaged, or one before it is not what it was when it was written.
    """
    try:
        content = shared_folder.read_bytes(folder / JOURNAL)
    except FileNotFoundError:
        return []
    milestones: list[Milestone] = []
    before, end = hashlib.sha256(), 0
    for number, text in enumerate(content.splitlines(keepends=True), 1):
        end += len(text)
        if f'"{MILESTONE}"'.encode() in text and text.endswith(b"\n"):
            try:
                milestones.append(_parse(number, text, end, before.hexdigest()))
                _require_later(*milestones[-2:])
            except ValueError as error:
                raise BrokenChain(f"{folder / JOURNAL}: line {number}: {error}") from None
        before.update(text)
    return milestones


def _parse(number: int, text: bytes, end: int, before: str) -> Milestone:
    try:
        line = json.loads(text)
        digests = {key: str(line[MILESTONE][key]) for key in ("state", "journal")}
        milestone = Milestone(int(line["step"]), int(line["epoch"]), digests["state"], number, end)
    except (ValueError, KeyError, TypeError):
        raise ValueError("its milestone is damaged") from None
    if digests["journal"] != before:
        raise ValueError(
            "the chain of milestones is broken: the lines before it are not those that the "
            f"training had written by step {milestone.step}"
        )
    return milestone


def _require_later(one: Milestone, other: Milestone | None = None) -> None:
    if other is not None and (other.epochs <= one.epochs or other.step <= one.step):
        raise ValueError(f"its milestone, of step {other.step}, follows one of step {one.step}")
