"""Waiting for events in other processes, with a timeout that suits a busy machine."""

import time
import urllib.error
import urllib.request

PATIENCE = 600.0  # seconds
_REST = 4.0
"""Pause after a call, in multiples of the time that it took."""


def wait_for(condition, describe=lambda: "", every=0.05):
    """Call `condition` every so many seconds until its result is true, and return that.

    Less often if a call takes long: waiting leaves the processor to what it waits for.

    Raises:
        AssertionError: it is not true within `PATIENCE`; with the text of `describe()`.
    """
    start = time.monotonic()
    deadline = start + PATIENCE
    while not (result := condition()):
        end = time.monotonic()
        assert end < deadline, f"not within {PATIENCE:.0f} s: {describe()}"
        time.sleep(max(every, _REST * (end - start)))
        start = time.monotonic()
    return result


def wait_for_answer(url, process, log):
    """Wait until the server in `process`, which writes to `log`, answers at `url`."""

    def answers():
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True

    wait_for(answers, log.read_text, every=0.1)
