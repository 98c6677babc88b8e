"""A command as a shell or a program starts it, which runs as a fork of the server of forkserver.py.

    python -IS forked_command.py MODULE [ARGUMENT]...

Begins in a hundredth of a second: it imports little. Folder, environment, both outputs and the exit
code are the command's; signals are not handed on, but if this process is killed the fork is too.
"""

import array
import json
import os
import socket
import sys
from pathlib import Path


def main(module: str, *arguments: str) -> int:
    """Run `python -m module arguments` as a fork and return its exit code."""
    job = {"module": module, "arguments": arguments, "cwd": str(Path.cwd()),
           "env": dict(os.environ), "prepare": ()}  # fmt: skip
    text = json.dumps(job).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.connect(f"{os.environ['TESTS_FOLDER']}/forkserver.socket")
        files = array.array("i", [1, 2])
        line.sendmsg(
            [len(text).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)]
        )
        line.sendall(text)
        _number(line)  # its pid
        code = _number(line)
    return code if code >= 0 else 128 - code  # as a shell has it


def _number(line: socket.socket) -> int:
    content = b""
    while len(content) < 8:
        more = line.recv(8 - len(content))
        assert more, "the fork server of the tests has ended"
        content += more
    return int.from_bytes(content, "big", signed=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
