"""The proof of one run: trained once undisturbed, once killed again and again, then compared."""

import json
import logging
import math
import shutil
import socket
import time
from collections.abc import Sequence
from typing import Any

from smt.config.experiments import Run
from smt.config.project import Project
from smt.proof import interrupt, plan
from smt.proof.interrupt import EventResult, Interruption, KillResult
from smt.proof.launch import Launcher
from smt.proof.record import ProofRecord
from smt.proof.trainings import Trainings, processes
from smt.runs import journal, provenance, record
from smt.runs.atomic import sha256
from smt.runs.paths import Layout
from smt.runs.record import RunMetrics

log = logging.getLogger(__name__)


class Proof:
    """Proves one run on a number of ranks, and writes the record of it."""

    def __init__(
        self, project: Project, layout: Layout, run: Run, launcher: Launcher, *, ranks: int,
        kills: int, draw: int, events: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.layout, self.run, self.launcher, self.ranks = layout, run, launcher, ranks
        self.kills, self.draw, self.events = kills, draw, events
        self.title = f"{run} on {processes(ranks)}"
        self.path = layout.proof_record(run, ranks)
        self.folder = self.path.with_suffix("")
        self._trainings = Trainings(project, layout, run, launcher, self.folder)

    def prove(self) -> ProofRecord:
        """Train, kill, compare; return the record, which is written to `path` as well.

        Raises:
            ProofFailed: a training failed instead of ending or going on; the message names its log.
            UserError: more kills and events than steps, the command of an event fails, or ranks
                cannot share a global batch.
        """
        started = time.monotonic()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.path.unlink(missing_ok=True)
        self._trainings.write_params(self.ranks)
        log.info("%s: undisturbed", self.title)
        self._trainings.train("undisturbed", self.ranks)
        undisturbed = self._outcome("undisturbed")
        schedule = plan.draw(
            str(self.run), self.draw, steps=undisturbed.steps, ranks=self.ranks,
            kills=self.kills, events=self.events,
        )  # fmt: skip
        step_seconds = undisturbed.wall_seconds / undisturbed.steps
        interruption = Interruption(self._trainings, self.ranks, step_seconds)
        interruption.run(schedule, undisturbed.steps)
        outcome = self._compare(undisturbed, interruption.results)
        if self.ranks > 1:
            log.info("%s: undisturbed on 1 process, for comparison", self.run)
            self._trainings.train("alone", 1)
            outcome["one_rank"] = self._deviation()
        proof = ProofRecord(**outcome, seconds=round(time.monotonic() - started, 1))
        record.write(self.path, proof)
        return proof

    def _outcome(self, name: str) -> RunMetrics:
        final = record.read_metrics(self._trainings.layout(name), self.run)
        assert final is not None  # the training has ended with exit code 0
        return final

    def _journal(self, name: str) -> bytes:
        (folder,) = self._trainings.work_dirs(name)
        return (folder / journal.JOURNAL).read_bytes()

    def _compare(
        self, undisturbed: RunMetrics, results: Sequence[KillResult | EventResult]
    ) -> dict[str, Any]:
        interrupted = self._outcome(interrupt.NAME)
        (folder,) = self._trainings.work_dirs(interrupt.NAME)
        known = provenance.require(folder)
        resumed = [attempt.resumed_at_step for attempt in known.attempts]
        pair = ("undisturbed", interrupt.NAME)
        weights = [sha256(self._trainings.layout(name).weights(self.run)) for name in pair]
        journals = [self._journal(name) for name in pair]
        after = list(zip(results, _resumed_at(results, resumed), strict=True))
        kills = [_kill_record(each, at) for each, at in after if isinstance(each, KillResult)]
        events = [_event_record(each, at) for each, at in after if isinstance(each, EventResult)]
        equal_numbers = undisturbed.metrics == interrupted.metrics
        return {
            "experiment": self.run.experiment,
            "seed": self.run.seed,
            "scale": self.layout.scale,
            "ranks": self.ranks,
            **self.launcher.facts,
            "fingerprint": undisturbed.fingerprint,
            "commit": known.git.commit,
            "host": socket.gethostname(),
            "steps": undisturbed.steps,
            "drawn_from": self.draw,
            "kills": kills,
            "resumed_at": resumed[1:],
            "weights_sha256": weights,
            "weights_equal": weights[0] == weights[1] and equal_numbers,
            "journal_equal": journals[0] == journals[1],
            "first_difference": _first_difference(*journals),
            # Told to stop, a training must save what it has done: no step is taken twice.
            "steps_lost_when_told": sum(k["repeated"] for k in kills if k["saves"]),
            "most_steps_repeated": max((each["repeated"] for each in [*kills, *events]), default=0),
            "kills_drawn": self.kills,
            **({"events": events, "events_drawn": len(self.events)} if self.events else {}),
        }

    def _deviation(self) -> dict[str, Any]:
        """Return how far the result on several ranks is from that on one."""
        from safetensors.torch import load_file

        many, one = self._outcome("undisturbed"), self._outcome("alone")
        pair = ("undisturbed", "alone")
        first, second = (load_file(self._trainings.layout(n).weights(self.run)) for n in pair)
        names = [name for name, value in first.items() if value.is_floating_point()]
        distance = sum(
            float((first[n].double() - second[n].double()).square().sum()) for n in names
        )
        norm = sum(float(second[name].double().square().sum()) for name in names)
        first_lines = (json.loads(self._journal(name).splitlines()[0]) for name in pair)
        losses = [line["metrics"]["train/loss"] for line in first_lines]
        return {
            "steps": [many.steps, one.steps],
            "images": [many.images, one.images],
            "first_loss": losses,
            "weights_relative_l2": math.sqrt(distance / norm),
            "metrics": [many.metrics, one.metrics],
        }


def _resumed_at(
    results: Sequence[KillResult | EventResult], resumed: Sequence[int]
) -> list[int | None]:
    """Return the step at which the training was resumed after each; None where it went on."""
    after = iter(resumed[1:])
    return [None if result.ended_at is None else next(after, None) for result in results]


def _kill_record(result: KillResult, resumed_at: int | None) -> dict[str, Any]:
    went_on = resumed_at if result.kill.ends else result.at_step
    return {
        "kill": str(result.kill),
        "signal": result.kill.signal.name,
        "saves": result.saves,
        "ends": result.kill.ends,
        "workers": result.kill.workers,
        "at_step": result.at_step,
        "resumed_at": went_on,
        "repeated": _repeated(result, resumed_at),
        "exit_codes": result.codes,
    }


def _event_record(result: EventResult, resumed_at: int | None) -> dict[str, Any]:
    return {
        "command": result.event.command,
        "rank": result.event.rank,
        "node": result.node,
        "at_step": result.at_step,
        "ended_at": result.ended_at,
        "resumed_at": resumed_at,
        "repeated": _repeated(result, resumed_at),
        "exit_codes": result.codes,
    }


def _repeated(result: KillResult | EventResult, resumed_at: int | None) -> int:
    """Return the steps that were done twice."""
    if result.ended_at is None or resumed_at is None:
        return 0
    return max(0, result.ended_at - resumed_at)


def _first_difference(one: bytes, other: bytes) -> str | None:
    """Return the first line of the journals that differs, or None."""
    if one == other:
        return None
    lines = zip(one.splitlines(), other.splitlines(), strict=False)
    for number, (first, second) in enumerate(lines, 1):
        if first != second:
            return f"line {number}: {first.decode()} and {second.decode()}"
    counts = [len(each.splitlines()) for each in (one, other)]
    return f"one has {counts[0]} lines, the other {counts[1]}"
