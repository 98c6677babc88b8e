"""Commands of `smt` in the process of the test."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

from smt.cli import main


def smt(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `smt arguments` in this process; return exit code and output as subprocess.run does.

    For commands that start no threads or processes and change no signal handler or folder.
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
