"""File operations on one host, one at a time, as a process on another host asks for them.

`python -m smt.cluster.doctor.file_agent FOLDER` reads requests from stdin, `[number, operation,
*arguments]`, and writes `[number, result, error]` to stdout, each a line of JSON. It ends with its
stdin. The folder is what is examined, so nothing is exchanged through it.
"""

import fcntl
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from smt.runs.atomic import replacing

KINDS_OF_LOCK: dict[str, Callable[[BinaryIO, int], Any]] = {
    "lockf": fcntl.lockf,
    "flock": fcntl.flock,
}
"""Both are in use: lockf (POSIX) by runs, flock by the executor, data and MLflow."""

GRANTED, REFUSED = "granted", "refused"
POLL_SECONDS = 0.02
_WRITES, _WRITE_SECONDS = 20, 2.0
"""How often, or for how long, a file is written to measure fsync."""


class FileAgent:
    """The operations; `folder` is shared with the agent of the other host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: dict[str, BinaryIO] = {}
        self._appending: BinaryIO | None = None
        self._visible: dict[str, Callable[[], bool]] = {
            "stat": (folder / "stat" / "new").exists,
            "listing": lambda: any((folder / "listing").iterdir()),
            "replaced": lambda: (folder / "replaced" / "file").read_bytes() == b"new",
            "appended": lambda: (folder / "appended" / "file").read_bytes() == b"old\nnew\n",
        }

    def host(self) -> dict[str, str]:
        """Return the node's name in SLURM, else the host's, and the id of its running kernel."""
        return {
            "name": os.environ.get("SLURMD_NODENAME", platform.node()),
            "kernel": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        }

    def clock(self) -> float:
        """Return the time in Unix seconds."""
        return time.time()

    def try_lock(self, kind: str) -> str:
        """Return `GRANTED`, `REFUSED` as another holds the lock, or why locking fails."""
        file = (self._folder / kind).open("ab")
        try:
            KINDS_OF_LOCK[kind](file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            file.close()
            is_held = isinstance(problem, BlockingIOError | PermissionError)
            return REFUSED if is_held else problem.strerror or str(problem)
        self._locks[kind] = file
        return GRANTED

    def await_lock(self, kind: str, patience: float) -> float | None:
        """Return the seconds until the lock was granted; None after `patience` seconds."""
        return _seconds_until(lambda: self.try_lock(kind) == GRANTED, patience)

    def unlock(self, kind: str) -> None:
        """Release a lock that this host holds."""
        self._locks.pop(kind).close()

    def make_files(self) -> None:
        """Make what `change_files` changes; each in a folder of its own, which is cached alone."""
        for name in self._visible:
            (self._folder / name).mkdir()
        for name in ("replaced", "appended"):
            (self._folder / name / "file").write_bytes(b"old\n")

    def visible_changes(self) -> list[str]:
        """Return which changes of the other host are visible; the host caches what it reads."""
        return [name for name, is_visible in self._visible.items() if is_visible()]

    def change_files(self) -> None:
        """Make a new file in two folders, replace one, and append to another without fsync."""
        for name in ("stat", "listing"):
            _replace(self._folder / name / "new")
        _replace(self._folder / "replaced" / "file")
        self._appending = (self._folder / "appended" / "file").open("ab", buffering=0)
        self._appending.write(b"new\n")  # and left open, as a running training's journal is

    def await_changes(self, patience: float) -> dict[str, float | None]:
        """Return the seconds until each change was visible; None after `patience` seconds."""
        seconds: dict[str, float | None] = dict.fromkeys(self._visible)
        start = time.monotonic()

        def all_are_visible() -> bool:
            for name, waited in seconds.items():
                if waited is None and _is_true(self._visible[name]):
                    seconds[name] = time.monotonic() - start
            return None not in seconds.values()

        _seconds_until(all_are_visible, patience)
        return seconds

    def open_to_append(self) -> None:
        """Open the file to which both hosts append."""
        self._appending = (self._folder / "both").open("ab", buffering=0)

    def append(self, lines: list[str]) -> None:
        """Append whole lines, each in one write."""
        assert self._appending is not None
        for line in lines:
            self._appending.write(f"{line}\n".encode())

    def sync_appended(self) -> None:
        """Bring the appended lines to the file server."""
        assert self._appending is not None
        os.fsync(self._appending.fileno())
        self._appending.close()

    def appended_lines(self) -> list[str]:
        """Return the lines of the file to which both appended."""
        return (self._folder / "both").read_text(errors="replace").splitlines()

    def fsync_seconds(self) -> float:
        """Return the mean time to write a small file as smt writes them: fsync, then rename."""
        start, count = time.monotonic(), 0
        while count < _WRITES and time.monotonic() - start < _WRITE_SECONDS:
            _replace(self._folder / f"fsync-{platform.node()}-{os.getpid()}")
            count += 1
        return (time.monotonic() - start) / count

    def remove_files(self) -> None:
        """Remove what can be removed; whoever made the folder removes the rest."""
        for file in filter(None, (self._appending, *self._locks.values())):
            file.close()  # NFS keeps a file that is open as .nfs*
        with suppress(OSError):
            for path in self._folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _replace(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"new")


def _is_true(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except OSError:  # ESTALE: NFS, of a file that was replaced while it was opened
        return False


def _seconds_until(condition: Callable[[], bool], patience: float) -> float | None:
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > patience:
            return None
        time.sleep(POLL_SECONDS)
    return time.monotonic() - start


def serve(folder: Path) -> None:
    """Answer requests until stdin ends."""
    agent = FileAgent(folder)
    for line in sys.stdin:
        number, operation, *arguments = json.loads(line)
        try:
            answer = [number, getattr(agent, operation)(*arguments), None]
        except OSError as problem:
            answer = [number, None, f"{problem.filename or folder}: {problem.strerror}"]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
