"""Signals that ask a training to stop: they set a flag, and the loop looks at it."""

import os
import signal
import threading
from types import FrameType

from smt.engine import requeue
from smt.errors import EXIT_RESUME

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Remembers that a stop was asked for. A second SIGINT ends the process at once.

    Until `begin` is called there is nothing to save, and the first signal ends the process as one
    that can be started again; also where it waits, deep inside a library, for other processes.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._begun = False

    def install(self) -> "StopRequest":
        """Take over the signals. Call it early: before that they kill the process."""
        for number in SIGNALS:
            signal.signal(number, self._remember)
        # Python calls a handler only between two of its own instructions, but writes to this pipe
        # whatever it is at.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), name="signals", daemon=True).start()
        return self

    def begin(self) -> None:
        """From now on a signal waits for the training to save its state."""
        self._begun = True

    def _watch(self, reading: int) -> None:
        while not self._begun:
            (number,) = os.read(reading, 1)
            if number in SIGNALS and not self._begun:
                requeue.ask_for_another_attempt()
                os._exit(EXIT_RESUME)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    @property
    def asked(self) -> bool:
        """Whether any of the signals has come."""
        return self.signal is not None
