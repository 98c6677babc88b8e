"""Commands of `smt` run within the process of the test: what they print, and their exit code."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

from smt.cli import main


def smt(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `smt arguments` here, and return what a process of its own would have.

    For commands that start no threads or processes, change no signal handler and no folder.
    """
    command = ["smt", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", command),
        mock.patch.dict(os.environ),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert code is None or isinstance(code, int), code
    return subprocess.CompletedProcess(command, code or 0, out.getvalue(), err.getvalue())
