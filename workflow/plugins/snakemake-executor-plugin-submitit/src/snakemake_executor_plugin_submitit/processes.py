"""The processes of a job on its first node: starting them, signalling them, seeing them end."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

WATCHED = (signal.SIGCHLD, signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT)
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def adopt_orphans() -> None:
    """Make descendants whose parents have ended children of this process, not of init's."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def hold_signals() -> None:
    """Keep WATCHED signals for `next_signal` instead of running handlers."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)


def next_signal(seconds: float) -> signal.Signals | None:
    """Return the next of the WATCHED signals, or None if there is none for `seconds`."""
    taken = signal.sigtimedwait(WATCHED, max(seconds, 0))
    return None if taken is None else signal.Signals(taken.si_signo)


def start(command: str, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a shell command that does not mind SIGUSR2, and whose children do not either.

    It would end Snakemake and shells on the spot, while the trainer below them still saves. A
    program that installs a handler of its own gets it.
    """
    return subprocess.Popen(
        ["/bin/bash", "-c", command],
        stdin=subprocess.DEVNULL,
        env=environment,
        preexec_fn=_take_no_notice,
    )


def _take_no_notice() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)


def descendants() -> list[int]:
    """Return the ids of all living processes below this one."""
    children: dict[int, list[int]] = {}
    for pid, parent in _living():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    level = [os.getpid()]
    while level:
        level = [child for pid in level for child in children.get(pid, [])]
        found += level
    return found


def _living() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # "pid (name) state parent ...", where the name may hold anything
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except (OSError, ValueError):
                continue
            if state != "Z":
                yield int(entry.name), int(parent)


def signal_all(number: signal.Signals) -> None:
    """Send a signal to all processes below this one."""
    for pid in descendants():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def reap_orphans(child: "subprocess.Popen[bytes]") -> None:
    """Take the exit status of ended processes that were adopted; leave the child's to `child`."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or (ended.si_pid == child.pid and child.returncode is None):
            return
        os.waitpid(ended.si_pid, 0)
