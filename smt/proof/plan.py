"""The schedule of kills and events of a proof, sampled from a seed, so that it can be repeated."""

import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from smt.errors import UserError

Target = Literal["all ranks", "one rank", "data worker"]
Moment = Literal["step", "checkpoint"]

MOST_WORKERS = 2
"""Data workers of each rank, at most, where a proof chooses their number."""


@dataclass(frozen=True)
class Kill:
    """One kill of a running training."""

    step: int
    """Not before so many global steps are done."""
    signal: signal.Signals
    target: Target
    moment: Moment
    """checkpoint: while one is being written; step: at any time after `step`."""
    rank: int
    """Of the one that is meant, where not all are."""
    workers: int
    """Data workers of each rank of the attempt that is killed."""
    delay: float
    """Part of a step's time to wait, so that it falls anywhere within a step."""

    @property
    def saves(self) -> bool:
        """Whether the training can save its state before it ends."""
        return self.signal != signal.SIGKILL

    @property
    def ends(self) -> bool:
        """Whether the attempt is over after it."""
        return self.target != "data worker"

    def __str__(self) -> str:
        who = "" if self.target == "all ranks" else f" of {self.target}"
        when = " in a checkpoint" if self.moment == "checkpoint" else ""
        return f"{self.signal.name}{who}{when}"


@dataclass(frozen=True)
class Event:
    """One event during a running training: a command of the user's, which acts on the site."""

    step: int
    """Not before so many global steps are done."""
    command: str
    """For a shell."""
    rank: int
    """The one whose node, process and job the command is told."""
    workers: int
    """Data workers of each rank of an attempt that is started for it."""

    def __str__(self) -> str:
        return f"event {self.command!r}"


_WORKERS = range(MOST_WORKERS + 1)

_KINDS: tuple[tuple[signal.Signals, Target, Moment], ...] = (
    (signal.SIGTERM, "all ranks", "step"),
    (signal.SIGKILL, "all ranks", "step"),
    (signal.SIGKILL, "all ranks", "checkpoint"),
    (signal.SIGUSR1, "all ranks", "step"),
    (signal.SIGUSR2, "all ranks", "step"),
    (signal.SIGINT, "all ranks", "step"),
    (signal.SIGKILL, "data worker", "step"),
)
_KINDS_OF_SEVERAL: tuple[tuple[signal.Signals, Target, Moment], ...] = (
    (signal.SIGKILL, "one rank", "step"),
    (signal.SIGTERM, "one rank", "step"),
)


def draw(
    name: str, seed: int, *, steps: int, ranks: int, kills: int, events: Sequence[str] = ()
) -> list[Kill | Event]:
    """Return `kills` kills and an event of each command in `events`, in the order of their steps.

    They are for a training of `steps` global steps by `ranks` processes, and a function of the
    arguments alone. Every kind of kill comes once before one comes twice. Events come in the order
    of their commands, each at a step of its own; kills are the same with events and without.

    Raises:
        UserError: the training has too few steps for so many.
    """
    if kills + len(events) > steps - 2:
        together = f" and {len(events)} of --event" if events else ""
        raise UserError(
            f"--kills {kills}{together}: {name} has {steps} steps; valid: 1 to "
            f"{max(steps - 2, 1)}{' in all' if events else ''}"
        )
    drawn = _kills(random.Random(f"{name}/{ranks}/{seed}"), steps, ranks, kills)
    free = sorted({*range(1, steps - 1)} - {kill.step for kill in drawn})
    random_ = random.Random(f"{name}/{ranks}/{seed}/events")
    schedule: list[Kill | Event] = [
        *drawn,
        *(
            Event(step, command, random_.randrange(ranks), random_.choice(_WORKERS))
            for step, command in zip(sorted(random_.sample(free, len(events))), events, strict=True)
        ),
    ]
    return sorted(schedule, key=lambda each: each.step)


def _kills(random_: random.Random, steps: int, ranks: int, count: int) -> list[Kill]:
    kinds: list[tuple[signal.Signals, Target, Moment]] = []
    while len(kinds) < count:
        every = [*_KINDS, *(_KINDS_OF_SEVERAL if ranks > 1 else ())]
        kinds += random_.sample(every, len(every))
    return [
        Kill(
            step=step,
            signal=number,
            target=target,
            moment=moment,
            rank=random_.randrange(ranks),
            workers=MOST_WORKERS if target == "data worker" else random_.choice(_WORKERS),
            delay=random_.random(),
        )
        for step, (number, target, moment) in zip(
            sorted(random_.sample(range(1, steps - 1), count)), kinds, strict=False
        )
    ]
