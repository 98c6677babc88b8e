"""A fork server: commands of one driver start as forks of a process that has imported torch.

Importing torch, timm and MLflow takes seven CPU-seconds. A local run of the demo has some hundred
jobs, and most of them take no longer than that. So the driver starts a server that imports all of
it once. `smt`, started by a job, sends its arguments, environment, folder and open files to the
server, which forks: the fork runs the command, and the job forwards signals to it. Without a
server, as in jobs of a cluster, `smt` runs the command itself.

Nothing is computed before the fork, so the results are those of a new process.
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
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

VARIABLE = "SMT_FORKSERVER"
"""Environment variable: the server's socket. `run` removes it, so that processes which a command
starts, such as the trainings of `smt prove`, do not use the server."""

DISABLED = "0"
"""Value of the variable with which no server is started."""

COMMANDS = (
    "data", "train", "evaluate", "profile", "look", "sync", "tables", "figures", "report",
)  # fmt: skip
"""Commands of the workflow's jobs, which run as forks."""

_PRELOADED = (
    *(f"smt.commands.{name}" for name in COMMANDS),
    "smt.tasks.training", "smt.tasks.classify", "smt.tasks.detect", "smt.tasks.segment",
    "smt.data.transforms.classification", "smt.detection.two_stage", "smt.detection.retinanet",
    "smt.detection.atss", "smt.detection.sparse_rcnn", "smt.detection.dino",
    "smt.tracking.sync", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "torch._dynamo",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg",
    "jinja2",
)  # fmt: skip
"""Modules that commands import on first use; torch's optimizers import torch._dynamo."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_STDIN = 0
"""The server's standard input: a pipe that is at its end once the driver has ended."""
_INT_BYTES = 8
"""Length of an integer in the protocol."""


# --- the driver -----------------------------------------------------------------------------------


def start() -> "subprocess.Popen[bytes] | None":
    """Start a server for the jobs of this process; it ends with this process.

    Returns None if SMT_FORKSERVER is 0.
    """
    if os.environ.get(VARIABLE) == DISABLED:
        return None
    folder = tempfile.mkdtemp(prefix="smt-forkserver-")
    os.environ[VARIABLE] = str(Path(folder, "socket"))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(os.environ[VARIABLE])
    listener.listen(64)  # jobs that connect while the server imports wait in this queue
    with listener:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno()), folder],
            pass_fds=[listener.fileno()], stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip


def stop(server: "subprocess.Popen[bytes] | None") -> None:
    """End the server that `start` has returned, and the commands that run as its forks."""
    if server is not None and server.stdin is not None:
        os.environ.pop(VARIABLE, None)
        server.stdin.close()
        server.wait()


# --- the job --------------------------------------------------------------------------------------


def run(arguments: list[str]) -> int | None:
    """Run `smt` with these arguments as a fork; return its exit code.

    Returns None if there is no server, or if the command does not run as a fork.
    """
    address = os.environ.pop(VARIABLE, None)
    if address in (None, DISABLED) or not arguments or arguments[0] not in COMMANDS:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with connection:
        try:
            connection.connect(address)
        except OSError:
            return None
        job = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
        try:
            pid = submit(connection, job, (0, 1, 2))
            for number in _SIGNALS:
                signal.signal(number, lambda number, _: _forward(pid, number))
            return shell_code(read_int(connection))
        except EOFError:
            print("smt: error: the driver's fork server has ended; start it again", file=sys.stderr)
            sys.exit(1)


def _forward(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


# --- the protocol: a job and three files, then the pid of the fork, and at last its exit code -----


def submit(connection: socket.socket, job: Mapping[str, Any], files: Sequence[int]) -> int:
    """Send a job, with its standard input, output and error; return the pid of its fork.

    Raises:
        EOFError: the server has ended.
    """
    content = json.dumps(job).encode()
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
    connection.sendmsg([_int_bytes(len(content))], [rights])
    connection.sendall(content)
    return read_int(connection)


def read_int(connection: socket.socket) -> int:
    """Return the next integer of the server: the pid, or the exit code as of subprocess.Popen.

    Raises:
        EOFError: the server has ended.
    """
    content = _read(connection, _INT_BYTES)
    if len(content) < _INT_BYTES:
        raise EOFError("the fork server has ended")
    return int.from_bytes(content, "big", signed=True)


def shell_code(code: int) -> int:
    """Return an exit code as a shell has it: 128 + N if signal N has ended the process."""
    return code if code >= 0 else 128 - code


def _int_bytes(value: int) -> bytes:
    return value.to_bytes(_INT_BYTES, "big", signed=True)


def _read(connection: socket.socket, length: int) -> bytes:
    content = b""
    while len(content) < length and (more := connection.recv(length - len(content))):
        content += more
    return content


# --- the server -----------------------------------------------------------------------------------


def serve(listener: socket.socket, end: int, run_job: Callable[[dict[str, Any]], object]) -> None:
    """Fork for each connection, and call `run_job` in the fork, until the file `end` is readable.

    The fork has the files of the job, and a session of its own. If the job is killed, or `end` is
    readable, so is the fork.
    """
    if threading.active_count() > 1:  # a fork has one thread, and waits for locks of the others
        raise RuntimeError(f"an import has started threads: {threading.enumerate()}")
    gc.freeze()
    # Of the server's objects: torch would withdraw 201 libraries of operators in each fork.
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the processes that attend
    while end not in select.select([listener.fileno(), end], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _attend(connection, end, run_job)
        connection.close()


def _attend(
    connection: socket.socket, end: int, run_job: Callable[[dict[str, Any]], object]
) -> NoReturn:
    """Fork a job, and send its pid and its exit code."""
    files = array.array("i")
    header, ancillary, _, _ = connection.recvmsg(_INT_BYTES, socket.CMSG_SPACE(3 * files.itemsize))
    files.frombytes(ancillary[0][2])
    job = json.loads(_read(connection, int.from_bytes(header, "big")))
    pid = os.fork()
    if pid == 0:
        connection.close()
        _take_files(files)
        _run_and_exit(lambda: run_job(job))
    for file in files:
        os.close(file)
    process = os.pidfd_open(pid)
    with suppress(OSError):
        connection.sendall(_int_bytes(pid))
    ready, _, _ = select.select([process, connection.fileno(), end], [], [])
    if process not in ready:
        with suppress(ProcessLookupError):  # it has not become the leader of its session yet
            os.killpg(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError):
        connection.sendall(_int_bytes(code))
    os._exit(0)


def _take_files(files: Sequence[int]) -> None:
    """Begin a session, and take these files as standard input, output and error."""
    os.setsid()
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def _run_and_exit(main: Callable[[], object]) -> NoReturn:
    """Call `main` and end this process with its exit code, as the interpreter ends a program."""
    code = 1
    try:
        result = main()
        code = result if isinstance(result, int) else 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            code = end.code or 0
        else:
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def set_environment(folder: str, environment: Mapping[str, str]) -> None:
    """Change this process's working directory, and replace its environment."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


def _run_smt(job: dict[str, Any]) -> None:
    set_environment(job["folder"], job["environment"])
    sys.argv = ["smt", *job["arguments"]]
    importlib.import_module("smt.cli").main()


def _serve_driver(descriptor: int, folder: Path) -> None:
    try:
        for module in _PRELOADED:
            importlib.import_module(module)
        serve(socket.socket(fileno=descriptor), _STDIN, _run_smt)
    finally:
        (folder / "socket").unlink(missing_ok=True)
        folder.rmdir()


if __name__ == "__main__":
    _serve_driver(int(sys.argv[1]), Path(sys.argv[2]))
