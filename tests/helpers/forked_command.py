"""A command that a shell or a program starts, and that runs as a fork of the tests' fork server.

    python -IS forked_command.py MODULE|-c [ARGUMENT]...

Folder, environment, standard files and exit code are the command's. SIGTERM goes on to the fork and
the processes below it, as SLURM sends it to those of a job; if this process is killed they are too.
It starts in a few hundredths of a second.
"""

import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # -I leaves PYTHONPATH away

from smt import forkserver


def main(module: str, *arguments: str) -> int:
    """Run `python -m module arguments` as a fork and return its exit code."""
    job = {"module": module, "arguments": arguments, "folder": str(Path.cwd()),
           "environment": dict(os.environ), "prepare": ()}  # fmt: skip
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(f"{os.environ['TESTS_FOLDER']}/forkserver.socket")
        pid = forkserver.submit(connection, job, (0, 1, 2))
        signal.signal(signal.SIGTERM, lambda *_: _terminate(pid))
        return forkserver.shell_code(forkserver.read_int(connection))


def _terminate(pid: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended, or is not yet the leader of its group
        os.killpg(pid, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
