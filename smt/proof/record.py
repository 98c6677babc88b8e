"""The record of a proof: a typed record a file, read and written here and nowhere else."""

import re
from collections.abc import Sequence
from pathlib import Path

from smt.runs import record
from smt.runs.paths import Layout
from smt.runs.record import DamagedRecord, Record

_FILE = re.compile(r"(?P<experiment>.+)-seed(?P<seed>\d+)-ranks(?P<ranks>\d+)")
"""The name that `Layout.proof_record` gives, without its suffix."""


class KillRecord(Record):
    """One kill of the interrupted training."""

    kill: str
    """Signal, target and moment, in words."""
    signal: str
    saves: bool
    """Whether the training can save its state before it ends; after an event, not for certain."""
    ends: bool
    """Whether the attempt is over after it."""
    workers: int
    """Data workers of each rank."""
    at_step: int
    """Global steps done when it was sent."""
    resumed_at: int | None
    """Global steps done when the training went on."""
    repeated: int
    """Steps taken twice."""
    exit_codes: Sequence[int]
    """Of each rank; empty where the training went on."""


class EventRecord(Record):
    """One event: a command of the user's that was run while the interrupted training ran."""

    command: str
    rank: int
    """The one whose node, process and job the command was told."""
    node: str
    at_step: int
    """Global steps done when it was started."""
    ended_at: int | None
    """Global steps done when the attempt had ended by it; None where the training went on."""
    resumed_at: int | None
    """Global steps done when the training was resumed; None where it went on."""
    repeated: int
    """Steps taken twice."""
    exit_codes: Sequence[int]
    """Of each rank; empty where the training went on."""


class RankComparison(Record):
    """The undisturbed training on several ranks, and on one: a pair of each value."""

    steps: tuple[int, int]
    images: tuple[int, int]
    first_loss: tuple[float, float]
    weights_relative_l2: float
    """L2 norm of the difference of the weights, relative to those of one rank."""
    metrics: tuple[dict[str, float], dict[str, float]]


class ProofRecord(Record):
    """`EXPERIMENT-seedN-ranksM.json`: a run trained undisturbed and killed, and the comparison."""

    experiment: str
    seed: int
    scale: str
    ranks: int
    launcher: str = "local"
    nodes: int = 1
    fingerprint: str
    commit: str | None
    host: str
    steps: int
    drawn_from: int
    """Seed of the schedule of kills."""
    kills: Sequence[KillRecord]
    kills_drawn: int | None = None
    """Kills in the schedule; some can come too late."""
    events: Sequence[EventRecord] = ()
    events_drawn: int = 0
    """Events in the schedule; some can come too late."""
    resumed_at: Sequence[int]
    weights_sha256: tuple[str, str]
    """Of the undisturbed training, and of the interrupted one."""
    weights_equal: bool
    journal_equal: bool
    first_difference: str | None
    """The first line of the journals that differs."""
    steps_lost_when_told: int
    """Steps taken twice after signals at which a training saves its state."""
    most_steps_repeated: int
    one_rank: RankComparison | None = None
    """Set for several ranks."""
    seconds: float
    """Wall time of the whole proof."""

    @property
    def is_equal(self) -> bool:
        """Whether the interrupted training ended as the undisturbed one, and lost no step."""
        return self.weights_equal and self.journal_equal and self.steps_lost_when_told == 0

    @property
    def kills_missed(self) -> int:
        """Kills of the schedule that came too late."""
        return 0 if self.kills_drawn is None else self.kills_drawn - len(self.kills)

    @property
    def events_missed(self) -> int:
        """Events of the schedule that came too late."""
        return self.events_drawn - len(self.events)


def read_all(layout: Layout) -> tuple[list[ProofRecord], list[DamagedRecord]]:
    """Return the records of all proofs of a scale, and the damage of those that cannot be read."""
    proofs, damages = [], []
    for path in sorted(layout.proof.glob("*.json")):
        try:
            proof = record.read(ProofRecord, path, f"remove it and run: {_command(path, layout)}")
        except DamagedRecord as damage:
            damages.append(damage)
        else:
            proofs += [proof] if proof is not None else []
    return proofs, damages


def _command(path: Path, layout: Layout) -> str:
    """Return the command that makes a record again."""
    match = _FILE.fullmatch(path.stem)
    if match is None:
        return f"smt prove --scale {layout.scale}"
    experiment, seed, ranks = match.groups()
    return f"smt prove {experiment} --seed {seed} --ranks {ranks} --scale {layout.scale}"
