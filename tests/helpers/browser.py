"""Chromium without a window, told over a pipe what to open (Chrome DevTools Protocol)."""

import json
import os
import select
import subprocess
import tempfile
from contextlib import contextmanager

from testbed.waiting import PATIENCE, wait_for
from tests.helpers.debian import require

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1600,1000",
         "--disable-breakpad", "--remote-debugging-pipe")  # fmt: skip

# It reads what it is told at file descriptor 3, and answers at 4.
START = ("/bin/sh", "-c", 'exec "$@" 3<&0 4>&1 < /dev/null > /dev/null', "sh")


@contextmanager
def browser():
    """Start a browser with an empty profile, and end it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = (*START, require("chromium"), *FLAGS, f"--user-data-dir={profile}")
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        started = Browser(process)
        try:
            yield started
            started.call("Browser.close")
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.communicate()


class Browser:
    """What is said to a browser, and what it answers."""

    def __init__(self, process):
        self._process, self._calls, self._read = process, 0, b""

    def page(self, url, is_ready):
        """Open a page; return its HTML once `is_ready` says so of it."""
        target = self.call("Target.createTarget", url=url)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

        def html():
            said = self.call(
                "Runtime.evaluate", session, expression="document.documentElement.outerHTML"
            )
            return said["result"].get("value", "")

        def ready():
            return found if is_ready(found := html()) else None

        return wait_for(ready, html, every=0.2)

    def call(self, method, session=None, **params):
        """Call a method of the protocol and return its result."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while (answer := self._message()).get("id") != self._calls:
            pass  # it tells of events as well
        assert "error" not in answer, answer
        return answer["result"]

    def _message(self):
        while b"\0" not in self._read:
            output = self._process.stdout.fileno()
            assert select.select([output], [], [], PATIENCE)[0], "the browser does not answer"
            more = os.read(output, 1 << 20)
            assert more, f"the browser has ended: {self._process.poll()}"
            self._read += more
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)
