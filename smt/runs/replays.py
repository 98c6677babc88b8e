"""What came of stretches of a run that were trained again: `audit.json`, beside its weights."""

from typing import Literal

from smt.config.experiments import Run
from smt.runs import record
from smt.runs.paths import Layout
from smt.runs.record import Environment, Record, RunMetrics

Outcome = Literal["equal", "differs", "undecided"]
"""undecided: it differs, and so does what decides the last bits: hardware, versions or code."""


class Replay(Record):
    """One stretch that was trained again, and compared byte for byte."""

    start_step: int
    end_step: int
    outcome: Outcome
    difference: str = ""
    """The first tensor and the first line of the journal that differ; empty where it is equal."""
    unlike: list[str] = []
    """What differs between the machine and the code of the run and those of the audit."""
    environment: Environment
    """Of the audit."""
    host: str
    at: float
    """Unix seconds."""


class Replays(Record):
    """`audit.json`: the stretches of a run that were trained again, each with its last outcome."""

    experiment: str
    seed: int
    scale: str
    fingerprint: str
    weights_sha256: str
    journal_sha256: str
    stretches: int
    """Of the whole run."""
    replays: list[Replay]

    def count(self, outcome: Outcome) -> int:
        """Return how many stretches had this outcome."""
        return sum(replay.outcome == outcome for replay in self.replays)

    @property
    def summary(self) -> str:
        """As in `3 of 4 stretches trained again, 2 equal to the byte, 1 differs`."""
        others = [
            f", {count} {outcome}"
            for outcome in ("differs", "undecided")
            if (count := self.count(outcome))
        ]
        return (
            f"{len(self.replays)} of {self.stretches} stretches trained again, "
            f"{self.count('equal')} equal to the byte{''.join(others)}"
        )


def read(layout: Layout, run: Run, final: RunMetrics) -> Replays | None:
    """Return what was trained again of a run; None if nothing was, or it was of other files.

    Raises:
        DamagedRecord: the file is damaged.
    """
    command = f"smt audit {run.experiment} --seed {run.seed} --scale {layout.scale}"
    known = record.read(Replays, layout.audit(run), f"remove it and run: {command}")
    if known is None or final.journal is None:
        return None
    is_same = (known.weights_sha256, known.journal_sha256) == (
        final.weights_sha256, final.journal.sha256
    )  # fmt: skip
    return known if is_same else None


def add(layout: Layout, run: Run, final: RunMetrics, stretches: int, replay: Replay) -> None:
    """Write down the outcome of one stretch, in place of an earlier one of the same steps."""
    assert final.journal is not None
    known = read(layout, run, final)
    steps = (replay.start_step, replay.end_step)
    others = [
        each
        for each in (known.replays if known is not None else [])
        if (each.start_step, each.end_step) != steps
    ]
    every = sorted([*others, replay], key=lambda each: each.start_step)
    record.write(
        layout.audit(run),
        Replays(
            experiment=run.experiment,
            seed=run.seed,
            scale=layout.scale,
            fingerprint=final.fingerprint,
            weights_sha256=final.weights_sha256,
            journal_sha256=final.journal.sha256,
            stretches=stretches,
            replays=every,
        ),
    )
