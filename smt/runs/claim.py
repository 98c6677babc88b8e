"""The claim of a training on its run: the lock of the work folder, and a token that fences.

The lock keeps a second training out. A process can lose it without notice: when its host is cut off
for longer than the file system's lease (NFS 4: 90 s), or when its file is removed. Some file
systems (sshfs) give it to both hosts. So whoever gets the lock also writes a new token, and a
training looks whether the token is still its own before anything of it takes a place in the folder:
see `Claim.require`. Clocks of hosts differ, and none is compared with another: a heartbeat is alive
if its content changes while this process looks.

Between that look and the rename that follows, a host may be cut off, and the rename arrive late.
What then arrives does no harm: a checkpoint is used only where the journal is its own
(`journal.refusal`), and files that grow are copied by each attempt (`atomic.detach`), so that late
writes reach the copy that nobody reads.
"""

import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from smt.errors import EXIT_RESUME, UserError
from smt.runs import heartbeat, lock
from smt.runs.atomic import RESULTS_REMEDY, explained, replacing

log = logging.getLogger(__name__)

TOKEN = "owner"
"""File with the token of the last training that got the lock."""


class RunHeld(UserError):
    """Another process held the lock all the time that this one waited; it can be called again."""

    exit_code = EXIT_RESUME


class ClaimLost(UserError):
    """Another process has taken over the run; this one must not write to it any more."""

    exit_code = EXIT_RESUME


@dataclass(frozen=True)
class Claim:
    """The claim of one training, the same on all of its ranks."""

    work_dir: Path
    token: str

    def require(self) -> None:
        """Return if no other training has claimed the run since. Reads one small file.

        Opening it asks the server on NFS, where a file that is open already would be read from
        memory.

        Raises:
            ClaimLost: another has, or the token is gone.
            OSError: the folder cannot be read.
        """
        try:
            token = (self.work_dir / TOKEN).read_text(encoding="ascii")
        except FileNotFoundError:
            token = ""
        if token != self.token:
            raise ClaimLost(
                f"{self.work_dir}: {lock.holder(self.work_dir / lock.LOCK)} has taken over this "
                "run; this process ends, and leaves its files alone"
            )


@contextmanager
def claimed(work_dir: Path, wait_seconds: float | None = None) -> Iterator[Claim]:
    """Hold the lock of a run's work folder, and give this process the run.

    Where another process holds it: refuse, or wait for `wait_seconds` at most.

    Raises:
        TrainingError: another process holds it, and there is no waiting.
        RunHeld: it held it all the time.
        UserError: the folder cannot be made or written.
    """
    if wait_seconds is None:
        with lock.exclusive(work_dir):
            yield _claim(work_dir)
        return
    with _wait(work_dir, wait_seconds):
        yield _claim(work_dir)


def _claim(work_dir: Path) -> Claim:
    claim = Claim(work_dir, secrets.token_hex(16))
    with explained(work_dir, RESULTS_REMEDY):
        # An NFS client remembers for up to a minute that a file was not there. Once a folder is
        # listed it asks again, and sees what the training before has written on another host.
        for folder in (work_dir.parent, work_dir):
            list(folder.iterdir())
        with replacing(work_dir / TOKEN) as file:
            file.write(claim.token.encode("ascii"))
    return claim


def _wait(work_dir: Path, seconds: float) -> TextIO:
    """Return the locked file, as soon as whoever has it ends or its file system frees it.

    A bound, also while the other trains: this process may have GPUs, which others could use.
    """
    file = lock.acquire(work_dir)
    if file is not None:
        return file
    watch = _HolderWatch(work_dir)
    log.warning("%s: %s; waits for it, %.3g min at most", work_dir, watch.state(), seconds / 60)
    while (file := lock.acquire(work_dir)) is None:
        if watch.seconds > seconds:
            raise RunHeld(f"{work_dir}: {watch.state()}; {watch.remedy()}")
        watch.look()
        time.sleep(lock.POLL_INTERVAL)
    return file


class _HolderWatch:
    """Looks at the heartbeat of the process that holds a lock."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir, self._started = work_dir, time.monotonic()
        self._beat = heartbeat.read(work_dir)
        self._changed_at: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the first look."""
        return time.monotonic() - self._started

    def look(self) -> None:
        """Look again, and log it when the holder is first seen to train."""
        beat = heartbeat.read(self._work_dir)
        if beat == self._beat:
            return
        is_first = self._changed_at is None
        self._beat, self._changed_at = beat, time.monotonic()
        if is_first:
            log.warning("%s: %s", self._work_dir, self.state())

    def state(self) -> str:
        """Return who holds the lock and what it is seen to do."""
        holder = lock.holder(self._work_dir / lock.LOCK)
        if self._changed_at is None:
            return f"{holder} holds this run's lock, no heartbeat seen for {_span(self.seconds)}"
        step = self._beat.step if self._beat else 0
        ago = _span(time.monotonic() - self._changed_at)
        return f"{holder} trains this run, at step {step} {ago} ago"

    def remedy(self) -> str:
        """Return what to do."""
        if self._changed_at is not None:
            return "the same command waits again; or stop one of the two"
        path = self._work_dir / lock.LOCK
        return f"the same command waits again; if that host is off for good: rm {path}"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
