"""Waiting for events in other processes, with a timeout that suits a busy machine."""

import time
import urllib.error
import urllib.request

PATIENCE = 600.0  # seconds


def wait_for(condition, describe=lambda: "", every=0.05):
    """Call `condition` every so many seconds until its result is true, and return that.

    Raises:
        AssertionError: it is not true within `PATIENCE`; with the text of `describe()`.
    """
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {describe()}"
        time.sleep(every)
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
