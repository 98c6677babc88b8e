"""The fork server of the tests: commands run as forks of one process with all imports.

Importing torch, timm and MLflow takes a process five to nine CPU-seconds; a fork takes a hundredth.
The server runs the `main` of a command, with the arguments, folder, environment and files that a
new process would have had, and signals can be sent to its pid. A test of imports, or of what a
process inherits, starts a real process. The protocol is that of smt/forkserver.py.
"""

import ctypes
import fcntl
import importlib
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from smt import forkserver
from testbed.waiting import wait_for
from tests.helpers import ROOT

FOLDER = "TESTS_FOLDER"
"""Environment variable: folder of the server's socket, lock and log, one per run of pytest."""

CONTROLLER = "TESTS_CONTROLLER"
"""Environment variable: pid of the pytest with which the server ends."""

COMMANDS = "TESTS_COMMANDS"
"""Environment variable: folder of programs that run as forks, first in the PATH of jobs."""

MADV_COLLAPSE = 25
"""Of linux/mman.h."""

PRELOADED = (
    "mlflow",
    # of Snakemake: its plugins, and what it imports as it reads a workflow
    "snakemake.cli", "snakemake.report.html_reporter", "snakemake.profiles",
    "snakemake_executor_plugin_submitit", "snakemake_logger_plugin_runs",
    "snakemake_storage_plugin_fs", "smart_open", "jsonschema", "multiprocessing.pool",
    # of DVC
    "dvc.cli.parser", "dvc.repo", "dvc.repo.index", "dvc.commands.repro", "dvc.scm",
)  # fmt: skip
"""Modules that the server imports beside those of `smt`."""


def run(
    module: str, *arguments: str, cwd: Path, env: dict[str, str], prepare: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` and return its output, as subprocess.run does.

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
        stdout, stderr = out.read().decode(), err.read().decode()
    return subprocess.CompletedProcess(command, code, stdout, stderr)


def start(
    module: str,
    *arguments: str,
    cwd: Path,
    env: dict[str, str],
    stdout: BinaryIO | None = None,
    stderr: BinaryIO | None = None,
    prepare: tuple[str, ...] = (),
) -> "Process":
    """Start `python -m module arguments`; its output goes to these files, or is discarded.

    `prepare` names what the fork calls first: a module, its function, the function's arguments.
    """
    job = {"module": module, "arguments": list(arguments), "folder": str(cwd),
           "environment": env, "prepare": prepare}  # fmt: skip
    folder = Path(os.environ[FOLDER])
    _start(folder)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(_socket(folder)))
    with Path(os.devnull).open("r+b") as null:
        files = [file.fileno() for file in (null, stdout or null, stderr or null)]
        return Process(connection, job, files)


def with_forked_commands(env: dict[str, str]) -> dict[str, str]:
    """Return an environment in which `smt`, `snakemake` and `dvc` run as forks as well.

    They do in a shell and, within a fork, as `sys.executable -m`. A test that sends signals to one
    of them cannot use it: see forked_command.py.
    """
    folder = Path(os.environ[FOLDER])
    _start(folder)
    commands = str(folder / "commands")
    return {**env, COMMANDS: commands, "PATH": f"{commands}{os.pathsep}{env['PATH']}"}


class Process:
    """A command that runs as a fork, with the methods of subprocess.Popen that tests use.

    As a context manager it sends SIGKILL at the end of the body.
    """

    def __init__(self, connection: socket.socket, job: dict[str, Any], files: list[int]) -> None:
        self.returncode: int | None = None
        self._connection = connection
        self.pid = forkserver.submit(connection, job, files)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, as subprocess.Popen.wait does."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = forkserver.read_int(self._connection)
            self._connection.close()
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


# --- the server -----------------------------------------------------------------------------------


def _start(folder: Path) -> None:
    """Start the server of this run of pytest, unless another worker has started it."""
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
    """Write the programs that run as forks, and a `python` that runs them and `-c` as forks."""
    folder.mkdir()
    fork = f"exec {sys.executable} -IS {Path(__file__).with_name('forked_command.py')}"
    for name in ("smt", "snakemake", "dvc"):
        (folder / name).write_text(f'#!/bin/sh\n{fork} {name} "$@"\n')
    (folder / "python").write_text(
        '#!/bin/sh\ncase "$1 $2" in\n'
        f'"-m smt" | "-m snakemake" | "-m dvc") shift; {fork} "$@" ;;\n'
        f'"-c "*) {fork} "$@" ;;\nesac\nexec {sys.executable} "$@"\n'
    )
    for path in folder.iterdir():
        path.chmod(0o755)


def stop(folder: Path) -> None:
    """End the server, if there is one; the controller of pytest calls this."""
    if _pid_file(folder).exists():
        with suppress(psutil.NoSuchProcess):
            server = psutil.Process(int(_pid_file(folder).read_text()))
            server.kill()
            # It takes a moment: the kernel frees its memory first.
            wait_for(lambda: server.status() == psutil.STATUS_ZOMBIE, lambda: str(server))


def _socket(folder: Path) -> Path:
    return folder / "forkserver.socket"


def _pid_file(folder: Path) -> Path:
    return folder / "forkserver.pid"


def serve(folder: Path, controller: int) -> None:
    """Import all modules, then fork for each connection until `controller` ends."""
    end = os.pidfd_open(controller)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    draft = folder / "forkserver.draft"
    listener.bind(str(draft))
    listener.listen(64)  # commands that connect while this imports wait in the queue
    draft.rename(_socket(folder))
    import smt

    for _, module, _ in pkgutil.walk_packages(smt.__path__, "smt."):
        if module != "smt.__main__":  # it is the command
            importlib.import_module(module)
    for module in PRELOADED:
        importlib.import_module(module)
    _fill_caches()
    _use_huge_pages()
    forkserver.serve(listener, end, _run_job)


def _fill_caches() -> None:
    """Compute what would take each fork seconds: digests of the source, and installed packages."""
    from smt.datasets.demo import digits
    from smt.runs import provenance, source
    from tests.helpers.params import project_at

    digits.mnist()
    for scale in ("smoke", "demo", "paper"):  # which parses what copies of the params have as well
        project_at(scale)
    source.digests = cache(source.digests)
    provenance.packages = cache(provenance.packages)
    source.digests(), provenance.packages()


def _use_huge_pages() -> None:
    """Move the memory of this process to pages of 2 MB, if the kernel can (Linux 6.1).

    A fork copies the table of all pages, and its end frees it: with 660 MB in pages of 4 KB, that
    takes up to 80 ms.
    """
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, mode, _, _, file, *_ = line.split()
        if mode == "rw-p" and file == "0":
            start, end = (int(address, 16) for address in addresses.split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_COLLAPSE)


def _run_job(job: dict[str, Any]) -> int:
    """Run `python -m module arguments`, and return its exit code."""
    pythonpath = os.environ.get("PYTHONPATH")
    forkserver.set_environment(job["folder"], job["environment"])
    if COMMANDS in os.environ:
        sys.executable = str(Path(os.environ[COMMANDS], "python"))
    sys.path.insert(0, job["folder"])
    if os.environ.get("PYTHONPATH") not in (None, pythonpath):
        _unload_package()
    sys.argv = [job["module"], *job["arguments"]]
    if job["module"] == "-c":
        del sys.argv[1]
    _customize(job["environment"])
    if job["prepare"]:
        module, function, *arguments = job["prepare"]
        getattr(importlib.import_module(module), function)(*arguments)
    return _main(job["module"], job["arguments"])


def _unload_package() -> None:
    """Unload `smt`, so that it is imported from PYTHONPATH."""
    sys.path[1:1] = os.environ["PYTHONPATH"].split(os.pathsep)
    for name in [name for name in sys.modules if name == "smt" or name.startswith("smt.")]:
        del sys.modules[name]


def _customize(environment: dict[str, str]) -> None:
    """Run the sitecustomize.py in PYTHONPATH, as an interpreter does at its start."""
    for folder in environment.get("PYTHONPATH", "").split(os.pathsep):
        path = Path(folder, "sitecustomize.py")
        if folder and path.exists():
            exec(compile(path.read_text(), path, "exec"), {"__name__": "sitecustomize"})
            return


def _main(module: str, arguments: list[str]) -> int:
    if module == "-c":
        exec(arguments[0], {"__name__": "__main__"})
        return 0
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


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
