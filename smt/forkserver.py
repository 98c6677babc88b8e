"""Commands of one driver on this machine, begun as forks of a process that has imported torch.

Importing torch, timm and MLflow takes a process seven CPU-seconds; a local run of the demo has some
hundred jobs, and most of them last no longer than that. The driver starts a server that imports
all of it once. `smt`, started by a job, hands its arguments, environment, folder and open files to
the server, which forks: the fork is the command, in a process of its own, and the job passes
signals on to it. Without a server `smt` does its own work, as it does in jobs of a cluster.

Nothing is computed before the fork, so the numbers are those of a process begun from nothing.
"""

import array
import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

VARIABLE = "SMT_FORKSERVER"
"""Environment variable: the server's socket. Whoever reads it removes it: what a command starts
itself, as the trainings that a proof kills, are processes of their own."""

NONE = "0"
"""What it is where no server is wanted."""

COMMANDS = ("data", "train", "evaluate", "profile", "sync", "tables", "figures", "report")
"""Commands that jobs run, and that are forked."""

_PRELOADED = (
    *(f"smt.commands.{name}" for name in COMMANDS),
    "smt.tasks.training", "smt.tasks.classify", "smt.tasks.detect", "smt.tasks.segment",
    "smt.data.transforms.classification", "smt.detection.two_stage", "smt.detection.retinanet",
    "smt.detection.atss", "smt.detection.sparse_rcnn", "smt.detection.dino",
    "smt.tracking.sync", "mlflow", "torch._dynamo",
)  # fmt: skip
"""Commands import what they need when they need it. The last is what torch's optimizers import when
they are first used."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_DRIVER = 0
"""The server's standard input: at its end once the driver has ended."""
_LENGTH = 8
"""Bytes of each number on the line between a job and the server."""


# --- the driver -----------------------------------------------------------------------------------


def start() -> "subprocess.Popen[bytes] | None":
    """Start a server for the jobs of this process, with which it ends.

    Returns None where SMT_FORKSERVER=0 asks for none.
    """
    if os.environ.get(VARIABLE) == NONE:
        return None
    folder = tempfile.mkdtemp(prefix="smt-forkserver-")
    os.environ[VARIABLE] = str(Path(folder, "socket"))
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(os.environ[VARIABLE])
    listening.listen(64)  # whoever comes while the server imports waits in this queue
    with listening:
        # Its standard input is how the server knows of this process's end.
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(listening.fileno()), folder],
            pass_fds=[listening.fileno()], stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip


def stop(server: "subprocess.Popen[bytes] | None") -> None:
    """End a server that `start` has returned; commands that it has forked end as well."""
    if server is not None and server.stdin is not None:
        os.environ.pop(VARIABLE, None)
        server.stdin.close()
        server.wait()


# --- the job --------------------------------------------------------------------------------------


def run(arguments: list[str]) -> int | None:
    """Run `smt` with these arguments as a fork; return its exit code.

    Returns None if there is no server, or if this command is not one that is forked.
    """
    address = os.environ.pop(VARIABLE, None)
    if address in (None, NONE) or not arguments or arguments[0] not in COMMANDS:
        return None
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with line:
        try:
            line.connect(address)
        except OSError:
            return None
        job = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
        text = json.dumps(job).encode()
        files = array.array("i", [0, 1, 2])
        line.sendmsg([_number(len(text))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        line.sendall(text)
        pid = _read_number(line)
        for number in _SIGNALS:
            signal.signal(number, lambda number, _: _pass_on(pid, number))
        return _read_number(line)


def _pass_on(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def _number(value: int) -> bytes:
    return value.to_bytes(_LENGTH, "big", signed=True)


def _read_number(line: socket.socket) -> int:
    content = _read(line, _LENGTH)
    if len(content) < _LENGTH:
        print("smt: error: the driver's fork server has ended; start it again", file=sys.stderr)
        sys.exit(1)
    return int.from_bytes(content, "big", signed=True)


def _read(line: socket.socket, length: int) -> bytes:
    content = b""
    while len(content) < length and (more := line.recv(length - len(content))):
        content += more
    return content


# --- the server -----------------------------------------------------------------------------------


def _serve(listening: socket.socket) -> None:
    """Import all, then fork for each job, until the driver closes the standard input."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who attends to a job is not waited for
    for module in _PRELOADED:
        importlib.import_module(module)
    if threading.active_count() > 1:  # a fork would lack them, and wait for locks that they hold
        raise RuntimeError(f"an import has started threads: {threading.enumerate()}")
    gc.freeze()
    while _DRIVER not in select.select([listening.fileno(), _DRIVER], [], [])[0]:
        line, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            _attend(line)
        line.close()


def _attend(line: socket.socket) -> None:
    """Fork a job's command, and tell the job its pid and its exit code.

    If the job or the driver is killed, so is the command.
    """
    files = array.array("i")
    header, ancillary, _, _ = line.recvmsg(_LENGTH, socket.CMSG_SPACE(3 * files.itemsize))
    files.frombytes(ancillary[0][2])
    job = json.loads(_read(line, int.from_bytes(header, "big")))
    pid = os.fork()
    if pid == 0:
        line.close()
        _become(job["arguments"], job["folder"], job["environment"], list(files))
    for file in files:
        os.close(file)
    command = os.pidfd_open(pid)
    with suppress(OSError):
        line.sendall(_number(pid))
    ready, _, _ = select.select([command, line.fileno(), _DRIVER], [], [])
    if command not in ready:
        with suppress(ProcessLookupError):  # it is not the first of a session yet
            os.killpg(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError):
        line.sendall(_number(code if code >= 0 else 128 - code))
    os._exit(0)


def _become(
    arguments: list[str], folder: str, environment: dict[str, str], files: list[int]
) -> None:
    """Be the command: with its files, folder and environment. Never returns."""
    os.setsid()
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["smt", *arguments]
    code = 1
    try:
        importlib.import_module("smt.cli").main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        _serve(socket.socket(fileno=int(sys.argv[1])))
    finally:
        Path(sys.argv[2], "socket").unlink(missing_ok=True)
        Path(sys.argv[2]).rmdir()
