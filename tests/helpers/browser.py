"""A headless Chromium, controlled over a pipe (Chrome DevTools Protocol)."""

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

# Chromium reads messages from file descriptor 3 and writes its own to 4.
SHELL_PREFIX = ("/bin/sh", "-c", 'exec "$@" 3<&0 4>&1 < /dev/null > /dev/null', "sh")


@contextmanager
def browser():
    """Start a browser with an empty profile, and end it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = (*SHELL_PREFIX, require("chromium"), *FLAGS, f"--user-data-dir={profile}")
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        chromium = Browser(process)
        try:
            yield chromium
            chromium.call("Browser.close")
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.communicate()


class Browser:
    """A client of a running browser."""

    def __init__(self, process):
        self._process, self._calls, self._buffer = process, 0, b""

    def page(self, url, is_ready):
        """Open a page; return its HTML once `is_ready(html)` is true."""
        target = self.call("Target.createTarget", url=url)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

        def html():
            answer = self.call(
                "Runtime.evaluate", session, expression="document.documentElement.outerHTML"
            )
            return answer["result"].get("value", "")

        def html_if_ready():
            return content if is_ready(content := html()) else None

        return wait_for(html_if_ready, html, every=0.2)

    def call(self, method, session=None, **params):
        """Call a method of the protocol and return its result."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while (answer := self._message()).get("id") != self._calls:
            pass  # an event
        assert "error" not in answer, answer
        return answer["result"]

    def _message(self):
        while b"\0" not in self._buffer:
            output = self._process.stdout.fileno()
            assert select.select([output], [], [], PATIENCE)[0], "the browser does not answer"
            more = os.read(output, 1 << 20)
            assert more, f"the browser has ended: {self._process.poll()}"
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
