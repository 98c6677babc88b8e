"""Watchdog: a training without progress writes its stacks to files and ends as resumable."""

import faulthandler
import logging
import os
import threading
import time
from pathlib import Path

from smt.engine import requeue
from smt.errors import EXIT_RESUME

log = logging.getLogger(__name__)

_MAX_INTERVAL = 5.0
"""Seconds between two checks at most, and time for other ranks to write their stacks."""


class Watchdog:
    """Ends this process when `reset` has not been called for `seconds`; a context manager.

    Every rank has its own. All ranks take a step together, so where one hangs all of them write
    their stacks to files in `folder` before they end: that of the one that hangs differs. Each has
    a file of its own, since NFS loses lines that two hosts append to one.
    """

    def __init__(self, folder: Path, rank: int, seconds: float) -> None:
        self._stacks = folder / f"stacks-rank{rank}.txt"
        self._rank, self._seconds = rank, seconds
        self._last_reset = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.reset()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()

    def reset(self) -> None:
        """Restart the countdown: the training has made progress."""
        self._last_reset = time.monotonic()

    def _watch(self) -> None:
        interval = min(self._seconds / 4, _MAX_INTERVAL)
        while not self._stopped.wait(interval):
            if time.monotonic() - self._last_reset > self._seconds:
                self._end(2 * interval)

    def _end(self, grace: float) -> None:
        log.error(
            "rank %d: no step for %.3g minutes; where it stands is in %s; ending so that the same "
            "command can resume",
            self._rank, self._seconds / 60, self._stacks,
        )  # fmt: skip
        try:
            with self._stacks.open("w", encoding="utf-8") as file:
                file.write(f"stacks of rank {self._rank}, process {os.getpid()}:\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write(f"end of the stacks of rank {self._rank}\n")
        finally:
            # What hangs cannot be unwound: the process ends here, as after kill -9.
            self._stopped.wait(grace)
            requeue.request_requeue()
            os._exit(EXIT_RESUME)
