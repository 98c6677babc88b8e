"""Signals that ask a training to stop: they set a flag, which the loop reads.

A handler that saved by itself would interrupt a step half-way, and ranks would save different
steps.
"""

import os
import signal
import threading
from types import FrameType

from smt.engine import requeue
from smt.errors import EXIT_RESUME

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Holds whether a stop was requested. A second SIGINT ends the process at once.

    Until `defer_signals` is called there is nothing to save, and the first signal ends the process
    with EXIT_RESUME, even while it waits inside a library for other processes.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._defer = False

    def install(self) -> "StopRequest":
        """Install the handlers. Call it early: before that they kill the process."""
        for number in SIGNALS:
            signal.signal(number, self._handle)
        # Python runs a handler only between two bytecode instructions, so not while it waits in a
        # collective. To this pipe it writes at once.
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read_end,), name="signals", daemon=True).start()
        return self

    def defer_signals(self) -> None:
        """From now on a signal only sets the flag: the training saves its state first."""
        self._defer = True

    def _watch(self, read_end: int) -> None:
        while not self._defer:
            (number,) = os.read(read_end, 1)
            if number in SIGNALS and not self._defer:
                requeue.request_requeue()
                os._exit(EXIT_RESUME)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    @property
    def requested(self) -> bool:
        """Whether any of the signals has come."""
        return self.signal is not None
