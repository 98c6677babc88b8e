"""How much of a training's time it waits for its data."""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Times:
    """Seconds since a process began to train."""

    waited: float = 0.0
    """For the next micro-batch: for a worker, or for the reading itself where there is none."""
    trained: float = 0.0
    """In steps, what was waited included; not in evaluations."""
    micro_batches: int = 0

    def share_since(self, before: "Times") -> float | None:
        """Return the part of the time since `before` that was waited; None without a step."""
        trained = self.trained - before.trained
        if self.micro_batches == before.micro_batches or trained <= 0:
            return None
        return (self.waited - before.waited) / trained


class DataWait:
    """Measures how long the micro-batches of a training are waited for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waited = self._trained = 0.0
        self._micro_batches = 0
        self._since: float | None = None
        """When the steps began that are being taken."""

    def measured(self, micro_batches: Iterator[T]) -> Generator[T, None, None]:
        """Yield micro-batches; steps are taken from the first call on until this is closed."""
        self._since = asked = self._clock()
        try:
            for micro_batch in micro_batches:
                self._waited += self._clock() - asked
                self._micro_batches += 1
                yield micro_batch
                asked = self._clock()
        finally:
            self._trained, self._since = self._trained_until_now(), None

    def times(self) -> Times:
        """Return the times until now."""
        return Times(self._waited, self._trained_until_now(), self._micro_batches)

    def _trained_until_now(self) -> float:
        running = 0.0 if self._since is None else self._clock() - self._since
        return self._trained + running
