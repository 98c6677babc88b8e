"""A run's journal: the append-only record of its metrics.

`journal.jsonl` holds only what the mathematics gives, so that an interrupted run ends with the same
bytes as an uninterrupted one. The time of each line and the speed of the machine are in
`times.jsonl`, where the first entry for a line counts: a resumed run writes lines again, and must
not move points that MLflow has already.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smt.runs import shared_folder
from smt.runs.atomic import detach

JOURNAL = "journal.jsonl"
TIMES = "times.jsonl"
EVALUATION = "eval/"
"""What the names of metrics of an evaluation begin with."""
MILESTONE = "milestone"
"""Key of a line that records a milestone."""


@dataclass(frozen=True)
class Position:
    """A position in a journal, which checkpoints store."""

    bytes: int = 0
    lines: int = 0
    sha256: str | None = None
    """Of so many bytes; None in checkpoints of an earlier version."""


def refusal(folder: Path, position: Position) -> str | None:
    """Return why a training cannot go on from a position in the journal of a work folder, or None.

    Two trainings of one run on different machines may differ in last digits. Where one has taken
    over from the other, a checkpoint of the other does not go on in the journal of this one.
    """
    try:
        content = shared_folder.read_bytes(folder / JOURNAL)[: position.bytes]
    except FileNotFoundError:
        content = b""
    if len(content) < position.bytes:
        return "is ahead of the journal, which ends before it"
    if position.sha256 not in (None, hashlib.sha256(content).hexdigest()):
        return "does not go on from the journal, which another attempt has written"
    return None


class Journal:
    """The journal of one run, open for appending.

    Opening cuts it back to `position`: what was written after the checkpoint is written again.
    It also makes a copy, so that an attempt that has lost the run cannot write to this one's file.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
        ValueError: `position` is not one of this journal, see `refusal`.
    """

    def __init__(self, folder: Path, position: Position) -> None:
        problem = refusal(folder, position)
        if problem is not None:
            raise ValueError(f"{folder}: the checkpoint {problem}")
        for name in (JOURNAL, TIMES):
            detach(folder / name)
        self._journal = (folder / JOURNAL).open("a+b")
        self._journal.seek(0)
        self._hash = hashlib.sha256(self._journal.read(position.bytes))
        # Lines after the checkpoint belong to steps that this attempt takes again: kept, they would
        # be in the journal twice.
        self._journal.truncate(position.bytes)
        self._journal.seek(position.bytes)
        self._times = open_after_whole_line(folder / TIMES)
        self.position = Position(position.bytes, position.lines, self._hash.hexdigest())

    def append(
        self,
        step: int,
        epoch: int,
        metrics: Mapping[str, float],
        system: Mapping[str, float],
        state_sha256: str | None = None,
    ) -> None:
        """Add one line after `step` global steps and `epoch` whole epochs.

        `system` (throughput, memory) goes to the times: it may differ from one try to another.
        `state_sha256` makes it the line of a milestone, see `smt.runs.milestones`.
        """
        content: dict[str, Any] = {"step": step, "epoch": epoch, "metrics": dict(metrics)}
        if state_sha256 is not None:
            content[MILESTONE] = {"state": state_sha256, "journal": self.position.sha256}
        line = _line(content)
        _write(self._journal, line)
        entry = {"line": self.position.lines, "time": time.time(), "metrics": dict(system)}
        _write(self._times, _line(entry))
        self._hash.update(line)
        self.position = Position(
            self.position.bytes + len(line), self.position.lines + 1, self._hash.hexdigest()
        )

    def sync(self) -> Position:
        """Bring everything so far to disk and return the position reached."""
        os.fsync(self._journal.fileno())
        return self.position

    def close(self) -> None:
        self.sync()
        self._journal.close()
        self._times.close()


@dataclass(frozen=True)
class Line:
    """One line of a journal."""

    number: int
    """From 1."""
    step: int
    """Global steps done."""
    epoch: int
    """Whole epochs done."""
    metrics: Mapping[str, float]

    @property
    def evaluation(self) -> dict[str, float]:
        """The metrics of an evaluation, by the names of metrics.json; empty on other lines."""
        return {
            name.removeprefix(EVALUATION): value
            for name, value in self.metrics.items()
            if name.startswith(EVALUATION)
        }


@dataclass(frozen=True)
class TimedLine(Line):
    """One line of a journal with its time, and with metrics of the machine."""

    time: float
    """Unix seconds at which this line was first written; never before the line above."""


def lines(folder: Path, *, containing: str = "", finished: bool = False) -> Iterator[Line]:
    """Yield the lines of the journal of a work folder, or those `containing` a metric alone.

    None where there is no journal. A last line without its end is being written, and left out.

    Raises:
        ValueError: a line is damaged; of a `finished` journal that is also one without its end.
        OSError: a `finished` journal is not there.
    """
    for number, text in _texts(folder / JOURNAL, finished):
        # Most lines are of training: a reader of evaluations need not parse them.
        if containing.encode() not in text:
            continue
        try:
            line = json.loads(text)
            yield Line(number, int(line["step"]), int(line["epoch"]), dict(line["metrics"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"line {number} is damaged") from None


def read(folder: Path, created: float) -> list[TimedLine]:
    """Return the journal of the work folder; a last line that is not whole yet is left out.

    `created` (Unix seconds) dates the lines before the first one whose time is known.

    Raises:
        ValueError: a line is damaged.
    """
    # The journal first: every line that is read then has its time, but for the very last.
    untimed = list(lines(folder))
    first: dict[int, dict[str, Any]] = {}
    for _, text in _texts(folder / TIMES):
        entry = json.loads(text)
        first.setdefault(entry["line"], entry)
    timed: list[TimedLine] = []
    latest = created
    for index, line in enumerate(untimed):
        entry = first.get(index, {})
        latest = max(latest, entry.get("time", latest))  # a clock may be set back
        metrics = {**line.metrics, **entry.get("metrics", {})}
        timed.append(TimedLine(line.number, line.step, line.epoch, metrics, latest))
    return timed


@dataclass(frozen=True)
class Evaluation:
    """The best evaluation of a run."""

    metrics: Mapping[str, float]
    """By the names of metrics.json."""
    epoch: int
    line: int
    """Where it stands in the journal, from 1."""
    evaluations: int
    """Of how many it is the best."""


def best_evaluation(folder: Path, metric: str) -> Evaluation | None:
    """Return the evaluation with the highest value of `metric` in the journal of a work folder.

    Of equal ones that is the first. None where there is no journal, or no finite value in it.

    Raises:
        ValueError: such a line of the journal is damaged.
    """
    key = f"{EVALUATION}{metric}"
    evaluations = list(lines(folder, containing=f'"{key}"'))
    finite = [line for line in evaluations if math.isfinite(line.metrics[key])]
    if not finite:
        return None
    best = max(finite, key=lambda line: line.metrics[key])
    return Evaluation(best.evaluation, best.epoch, best.number, len(evaluations))


def extent(path: Path) -> dict[str, Any]:
    """Return SHA-256, bytes and lines of a journal that is finished, or of its times."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return {"sha256": digest, "bytes": len(content), "lines": content.count(b"\n")}


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, separators=(",", ":")) + "\n").encode()


def _write(file: Any, line: bytes) -> None:
    file.write(line)
    file.flush()


def open_after_whole_line(path: Path) -> Any:
    """Open for appending; drop a last line that a crash left without its end."""
    file = path.open("a+b")
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
    return file


def _texts(path: Path, finished: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yield number, from 1, and text of each whole line of a file; see `lines`."""
    try:
        content = shared_folder.read_bytes(path)
    except FileNotFoundError:
        if finished:
            raise
        return
    for number, text in enumerate(content.splitlines(keepends=True), 1):
        if text.endswith(b"\n"):
            yield number, text
        elif finished:
            raise ValueError(f"line {number} is not whole")
