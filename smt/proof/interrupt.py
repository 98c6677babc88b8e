"""The interrupted training of a proof: kills and events at their steps, resumed to its end."""

import logging
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from smt.errors import EXIT_RESUME, UserError
from smt.proof.launch import Attempt, last_message
from smt.proof.plan import Event, Kill
from smt.proof.trainings import LOOK, Trainings, ended, processes
from smt.runs import heartbeat
from smt.runs.checkpoint_files import FOLDER

log = logging.getLogger(__name__)

NAME = "interrupted"
"""The training's name, among those of a proof."""

_PATIENCE = 30.0
"""Seconds to wait for a checkpoint or a data worker to be there to be hit."""


@dataclass(frozen=True)
class KillResult:
    """The result of one kill."""

    kill: Kill
    at_step: int
    """Global steps done when it was sent."""
    codes: list[int]
    """Exit code of each rank; empty where the training went on."""
    saves: bool
    """Whether the training could save its state: after an event, that is not certain."""

    @property
    def ended_at(self) -> int | None:
        """Global steps done when the attempt was told to end; None where it went on."""
        return self.at_step if self.kill.ends else None


@dataclass
class EventResult:
    """The result of one event."""

    event: Event
    node: str
    """Node of the rank that the command was told."""
    at_step: int
    """Global steps done when the command was started."""
    codes: list[int] = field(default_factory=list)
    """Exit code of each rank; empty where the training went on."""
    ended_at: int | None = None
    """Global steps done when the attempt had ended; None where the training went on."""


class Interruption:
    """Trains with kills and events on the way, and resumes after each end.

    `step_seconds` is how long a step takes.
    """

    def __init__(self, trainings: Trainings, ranks: int, step_seconds: float) -> None:
        self.results: list[KillResult | EventResult] = []
        """What has been sent and run so far, in its order."""
        self._trainings, self._ranks, self._step_seconds = trainings, ranks, step_seconds
        self._title = f"{trainings.run} on {processes(ranks)}"
        self._attempt: Attempt | None = None
        self._started = 0
        self._event: EventResult | None = None
        """The last event during this attempt, which may end by it from then on."""

    def run(self, schedule: Sequence[Kill | Event], steps: int) -> None:
        """Train to the end, which comes after `steps` global steps.

        Raises:
            ProofFailed: an attempt failed instead of ending or going on; the message names its log.
            UserError: the command of an event failed, or an attempt cannot be started.
        """
        latest = [*(each.step for each in schedule[1:]), steps - 1]
        try:
            for due, before in zip(schedule, latest, strict=True):
                self._interrupt(due, before)
            codes = ended(self._running(None))
            while self._is_ended_by_event():
                codes = ended(self._running(None))
            self._require(codes, {0}, name="the last attempt")
        finally:
            if self._attempt is not None:
                self._attempt.close()

    def _running(self, workers: int | None) -> Attempt:
        """Return the attempt that runs, or start one with so many data workers."""
        if self._attempt is None:
            start = self._trainings.start
            self._attempt = start(NAME, self._ranks, self._started, workers)
            self._started += 1
        return self._attempt

    def _interrupt(self, due: Kill | Event, latest: int) -> None:
        """Send a kill, or run an event's command, at its step, unless the training ends before."""
        attempt = self._running(due.workers)
        while not self._bring(attempt, due, latest):
            if not self._is_ended_by_event():
                log.info("%s: no time was left for %s", self._title, due)
                return
            attempt = self._running(due.workers)

    def _bring(self, attempt: Attempt, due: Kill | Event, latest: int) -> bool:
        """Return whether a kill or an event took place before the attempt ended."""
        if not self._reach(attempt, due.step):
            return False
        if isinstance(due, Event):
            self._cause(attempt, due)
            return True
        sent = self._send(attempt, due, latest)
        if sent is None:
            return False
        self._conclude(attempt, *sent)
        return True

    def _reach(self, attempt: Attempt, step: int) -> bool:
        """Wait until so many global steps are done; return False if the attempt ends before."""
        while self._step() < step:
            if attempt.poll() is not None:
                return False
            time.sleep(LOOK)
        return attempt.poll() is None  # it may have got there and ended during an event's command

    # --- kills ----------------------------------------------------------------------------------

    def _send(self, attempt: Attempt, kill: Kill, latest: int) -> tuple[Kill, int] | None:
        """Wait for the moment of a kill, send it, and return it with the steps done by then.

        One that waits for a checkpoint waits no longer than to step `latest`, where the next kill
        is due: from then on it is one between checkpoints. None if the training has ended before.
        """
        time.sleep(kill.delay * self._step_seconds)
        deadline = time.monotonic() + _PATIENCE
        while attempt.poll() is None and time.monotonic() < deadline:
            step = self._step()
            if kill.moment == "checkpoint" and step >= latest and not self._is_saving():
                kill = replace(kill, moment="step")
            if kill.target == "data worker":
                if attempt.kill_worker(kill.rank):
                    return kill, step
            elif kill.moment == "step" or self._is_saving():
                attempt.kill(kill.signal, kill.rank if kill.target == "one rank" else None)
                return kill, step
            time.sleep(LOOK / 4)
        return None

    def _conclude(self, attempt: Attempt, kill: Kill, step: int) -> None:
        """Wait for the end of the attempt, if the kill means that, and keep the result."""
        codes = ended(attempt) if kill.ends else []
        self._require(codes, _expected(kill))
        log.info("%s: %s at step %d", self._title, kill, step)
        saves = kill.saves and self._event is None
        self.results.append(KillResult(kill, step, codes, saves))
        if kill.ends:
            self._attempt = self._event = None

    # --- events ---------------------------------------------------------------------------------

    def _cause(self, attempt: Attempt, event: Event) -> None:
        """Run the command of an event, and keep what is known of it so far."""
        place, step = attempt.place(event.rank), self._step()
        log.info("%s: %s at step %d", self._title, event, step)
        self._event = EventResult(event, place["SMT_PROOF_NODE"], step)
        self.results.append(self._event)
        variables = {"SMT_PROOF_RANK": str(event.rank), "SMT_PROOF_STEP": str(step), **place}
        _run(event.command, variables, self._trainings.logs(NAME) / f"event{len(self.results)}.log")

    def _is_ended_by_event(self) -> bool:
        """Return whether an event has ended the attempt before the training's end.

        If so, that is kept as the event's result, and the training is to be resumed.
        """
        codes = None if self._attempt is None else self._attempt.poll()
        if self._event is None or codes is None or not any(codes):
            return False
        self._require(codes, {0})
        self._event.codes, self._event.ended_at = codes, self._step()
        log.info("%s: ended by %s", self._title, self._event.event)
        self._attempt = self._event = None
        return True

    def _require(self, codes: Sequence[int], expected: set[int], name: str | None = None) -> None:
        """Raise ProofFailed if a rank ended as it should not, also in view of an event."""
        assert self._attempt is not None
        name = name or f"attempt {self._started - 1}"
        if self._event is None:
            self._trainings.require(self._attempt, codes, expected, name)
        else:
            expected = expected | {0, EXIT_RESUME}
            self._trainings.require(self._attempt, codes, expected, name, by_signal=True)

    # --- what the training says -----------------------------------------------------------------

    def _step(self) -> int:
        beats = (heartbeat.read(folder) for folder in self._trainings.work_dirs(NAME))
        return max((beat.step for beat in beats if beat is not None), default=0)

    def _is_saving(self) -> bool:
        folders = self._trainings.work_dirs(NAME)
        return any(any((folder / FOLDER).glob(".step-*.tmp")) for folder in folders)


def _expected(kill: Kill) -> set[int]:
    """Return the exit codes that a kill may give; a training that has just ended gives 0."""
    if kill.saves:
        return {0, EXIT_RESUME}
    # A rank that lost another one ends as one that can go on.
    return {0, -kill.signal, EXIT_RESUME} if kill.target == "one rank" else {0, -kill.signal}


def _run(command: str, variables: dict[str, str], output: Path) -> None:
    """Run an event's command in a shell; what it prints goes to `output`.

    Raises:
        UserError: it fails.
    """
    with output.open("wb") as file:
        code = subprocess.run(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
        ).returncode  # fmt: skip
    if code:
        raise UserError(
            f"--event {command!r}: exit code {code}; its last message: {last_message([output])}; "
            f"its output is in {output}"
        )
