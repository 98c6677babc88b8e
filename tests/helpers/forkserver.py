"""Commands of the environment, begun as forks of one process that has imported what they need.

Importing torch, timm and MLflow takes a process five to nine CPU-seconds; a fork takes a hundredth.
What is run is the command's own `main`, with the arguments, folder, environment and files that a
new process would have had, and its pid takes signals. A test of imports, or of what a process
inherits, starts a real process.
"""

import array
import atexit
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from testbed.waiting import wait_for
from tests.helpers import ROOT

FOLDER = "TESTS_FOLDER"
"""Environment variable: where the server of a run of pytest has its socket, lock and log."""

CONTROLLER = "TESTS_CONTROLLER"
"""Environment variable: the process of pytest with which the server ends."""

COMMANDS = "TESTS_COMMANDS"
"""Environment variable: folder of commands that run as forks, where a job's own commands do."""

PRELOADED = ("mlflow", "snakemake.cli", "dvc.cli", "dvc.repo", "dvc.commands.repro")
"""What is imported beside every module of `smt`."""


def run(
    module: str, *arguments: str, cwd: Path, env: dict[str, str], prepare: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` and return what it printed, as subprocess.run does.

    A `module` that ends with .py is a script.
    """
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with start(
            module, *arguments, cwd=cwd, env=env, stdout=out, stderr=err, prepare=prepare
        ) as process:
            code = process.wait()
        out.seek(0)
        err.seek(0)
        said, errors = out.read().decode(), err.read().decode()
    return subprocess.CompletedProcess(command, code, said, errors)


def start(
    module: str,
    *arguments: str,
    cwd: Path,
    env: dict[str, str],
    stdout: BinaryIO | None = None,
    stderr: BinaryIO | None = None,
    prepare: tuple[str, ...] = (),
) -> "Process":
    """Start `python -m module arguments`; what it prints goes to these files, or nowhere.

    `prepare` names what the fork calls before: a module, its function, the function's arguments.
    """
    job = {"module": module, "arguments": list(arguments), "cwd": str(cwd), "env": env,
           "prepare": prepare}  # fmt: skip
    folder = Path(os.environ[FOLDER])
    _start(folder)
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    line.connect(str(_socket(folder)))
    text = json.dumps(job).encode()
    with Path(os.devnull).open("wb") as nowhere:
        files = array.array("i", [(stdout or nowhere).fileno(), (stderr or nowhere).fileno()])
        header = len(text).to_bytes(8, "big")
        line.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        line.sendall(text)
    return Process(line)


def with_forked_commands(env: dict[str, str]) -> dict[str, str]:
    """Return an environment in which `smt`, `snakemake` and `dvc` run as forks as well.

    That goes for a shell's and, in a fork, for those of `sys.executable -m`. A test that signals or
    kills one of these does without it: see forked_command.py.
    """
    folder = Path(os.environ[FOLDER])
    _start(folder)
    commands = str(folder / "commands")
    return {**env, COMMANDS: commands, "PATH": f"{commands}{os.pathsep}{env['PATH']}"}


class Process:
    """A command that runs as a fork, with what tests use of subprocess.Popen.

    Used as a context manager it is ended, by SIGKILL, when the body ends and it has not.
    """

    def __init__(self, line: socket.socket) -> None:
        self.returncode: int | None = None
        self._line = line
        self.pid = self._number()

    def _number(self) -> int:
        answer = _receive(self._line, 8)
        if len(answer) < 8:
            log = (Path(os.environ[FOLDER]) / "forkserver.log").read_text()
            raise RuntimeError(f"the fork server of the tests has ended: {log}")
        return int.from_bytes(answer, "big", signed=True)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, as subprocess.Popen.wait does."""
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = self._number()
            self._line.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM, unless it has ended."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        self.wait()


def _receive(line: socket.socket, length: int) -> bytes:
    content = b""
    while len(content) < length and (more := line.recv(length - len(content))):
        content += more
    return content


# --- the server -----------------------------------------------------------------------------------


def _start(folder: Path) -> None:
    """Start the server of this run of pytest, if no other worker has yet."""
    with (folder / "forkserver.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _pid_file(folder).exists():
            return
        _write_commands(folder / "commands")
        with (folder / "forkserver.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(folder), os.environ[CONTROLLER]],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        wait_for(
            lambda: _socket(folder).exists() or process.poll() is not None,
            lambda: "the fork server does not listen",
        )
        _pid_file(folder).write_text(str(process.pid))


def _write_commands(folder: Path) -> None:
    """Write the commands that run as forks, and a `python` that has their modules run so."""
    folder.mkdir()
    fork = f"exec {sys.executable} -IS {Path(__file__).with_name('forked_command.py')}"
    for name in ("smt", "snakemake", "dvc"):
        (folder / name).write_text(f'#!/bin/sh\n{fork} {name} "$@"\n')
    (folder / "python").write_text(
        '#!/bin/sh\ncase "$1 $2" in "-m smt" | "-m snakemake" | "-m dvc")\n'
        f'  shift; {fork} "$@" ;;\nesac\nexec {sys.executable} "$@"\n'
    )
    for path in folder.iterdir():
        path.chmod(0o755)


def stop(folder: Path) -> None:
    """End the server, if there is one: whoever started this run of pytest calls it."""
    if _pid_file(folder).exists():
        with suppress(psutil.NoSuchProcess):
            server = psutil.Process(int(_pid_file(folder).read_text()))
            server.kill()
            # It takes a moment: what it has imported is given back first.
            wait_for(lambda: server.status() == psutil.STATUS_ZOMBIE, lambda: str(server))


def _socket(folder: Path) -> Path:
    return folder / "forkserver.socket"


def _pid_file(folder: Path) -> Path:
    return folder / "forkserver.pid"


def serve(folder: Path, controller: int) -> None:
    """Import all, then fork a process for each connection, until `controller` ends."""
    handle = os.pidfd_open(controller)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    draft = folder / "forkserver.draft"
    listening.bind(str(draft))
    listening.listen(64)  # who comes while this imports waits in the queue
    draft.rename(_socket(folder))
    import smt

    for _, module, _ in pkgutil.walk_packages(smt.__path__, "smt."):
        if module != "smt.__main__":  # it is the command
            importlib.import_module(module)
    for module in PRELOADED:
        importlib.import_module(module)
    _remember()
    assert threading.active_count() == 1, threading.enumerate()  # a fork has only this thread
    gc.freeze()
    while True:
        ready, _, _ = select.select([listening, handle], [], [])
        if handle in ready:
            return
        line, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _attend(line)
        line.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def _remember() -> None:
    """Compute what every fork would compute of what is installed: it takes seconds."""
    from smt.datasets.demo import digits
    from smt.runs import provenance, source

    digits.mnist()
    source.digests = cache(source.digests)
    provenance.packages = cache(provenance.packages)
    source.digests(), provenance.packages()


def _attend(line: socket.socket) -> None:
    """Fork the command of one connection; answer its pid and, when it ends, its exit code.

    Whoever goes away before takes the command with them.
    """
    header, ancillary, _, _ = line.recvmsg(8, socket.CMSG_SPACE(8))
    files = array.array("i")
    files.frombytes(ancillary[0][2][:8])
    job = json.loads(_receive(line, int.from_bytes(header, "big")))
    pid = os.fork()
    if pid == 0:
        line.close()
        os.setsid()
        _become(job, files)
    for file in files:
        os.close(file)
    handle = os.pidfd_open(pid)
    with suppress(BrokenPipeError):
        line.sendall(pid.to_bytes(8, "big", signed=True))
    ready, _, _ = select.select([handle, line], [], [])
    if handle not in ready:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(BrokenPipeError):
        line.sendall(code.to_bytes(8, "big", signed=True))
    os._exit(0)


def _become(job: dict[str, Any], files: "array.array[int]") -> None:
    """Be what `python -m module arguments` would have been; never return."""
    for number, file in ((1, files[0]), (2, files[1])):
        os.dup2(file, number)
        os.close(file)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    own = os.environ.get("PYTHONPATH")
    os.environ.clear()
    os.environ.update(job["env"])
    if COMMANDS in os.environ:
        sys.executable = str(Path(os.environ[COMMANDS], "python"))
    os.chdir(job["cwd"])
    sys.path.insert(0, job["cwd"])
    if os.environ.get("PYTHONPATH") not in (None, own):
        _forget_package()
    sys.argv = [job["module"], *job["arguments"]]
    code = 1
    try:
        _customize(job["env"])
        if job["prepare"]:
            module, function, *arguments = job["prepare"]
            getattr(importlib.import_module(module), function)(*arguments)
        code = _main(job["module"])
    except SystemExit as end:
        code = _code_of(end)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        _finish(code)


def _forget_package() -> None:
    """Let `smt` be imported again, from where PYTHONPATH has it."""
    sys.path[1:1] = os.environ["PYTHONPATH"].split(os.pathsep)
    for name in [name for name in sys.modules if name == "smt" or name.startswith("smt.")]:
        del sys.modules[name]


def _customize(environment: dict[str, str]) -> None:
    """Run the sitecustomize.py that PYTHONPATH leads to, as an interpreter does that begins."""
    for folder in environment.get("PYTHONPATH", "").split(os.pathsep):
        path = Path(folder, "sitecustomize.py")
        if folder and path.exists():
            exec(compile(path.read_text(), path, "exec"), {"__name__": "sitecustomize"})
            return


def _main(module: str) -> int:
    if module.endswith(".py"):
        sys.path.insert(0, str(Path(module).parent))
        runpy.run_path(module, run_name="__main__")
        return 0
    if module == "smt":
        from smt.cli import main
    elif module == "snakemake":
        from snakemake.cli import main
    elif module == "dvc":
        from dvc.cli import main
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return 0
    return main() or 0


def _code_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _finish(code: int) -> None:
    """End as an interpreter does: threads, what is registered for the end, streams."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
