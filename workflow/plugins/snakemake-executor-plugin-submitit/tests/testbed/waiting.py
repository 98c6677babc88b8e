"""Waiting for what another process does: as long as the busiest machine takes, not for ever."""

import time
import urllib.error
import urllib.request

PATIENCE = 600.0  # seconds; a test that waits longer waits in vain


def wait_for(condition, said=lambda: "", every=0.05):
    """Return what `condition` returns once that is true, which it is asked `every` so many seconds.

    Raises:
        AssertionError: it is not true within `PATIENCE`; with what `said` returns then.
    """
    deadline = time.monotonic() + PATIENCE
    while not (met := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {said()}"
        time.sleep(every)
    return met


def wait_for_answer(url, process, log):
    """Return once a server that `process` is, and that writes to `log`, answers at `url`."""

    def answers():
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True

    wait_for(answers, log.read_text, every=0.1)
