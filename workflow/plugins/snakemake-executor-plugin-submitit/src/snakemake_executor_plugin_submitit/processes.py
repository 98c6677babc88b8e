"""The processes of a job on its first node: starting them, signalling them, seeing them end."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
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


def start(command: str, environment: dict[str, str], heedless: bool) -> "subprocess.Popen[bytes]":
    """Start a shell command; a `heedless` one does not mind SIGUSR2, nor do its children.

    Else one that comes to all processes of the job, from whomever, would end Snakemake and shells
    on the spot, while the trainer below them still saves. Who installs a handler gets it.
    """

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN if heedless else signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)

    return subprocess.Popen(
        ["/bin/bash", "-c", command],
        stdin=subprocess.DEVNULL,
        env=environment,
        preexec_fn=prepare,
    )


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


# --- telling a job to save and stop ---------------------------------------------------------------

_NOT_TOLD = ("srun", "slurmstepd")
"""srun hands the signal on to all its tasks, and ends those that have no handler; slurmstepd is
SLURM's own."""


def tell() -> list[str]:
    """Send SIGUSR2 to the processes of this job on this node that have a handler for it.

    Returns name and id of each. To all others it would be their end.
    """
    told = []
    for pid in _of_job():
        name = _name(pid)
        if name and name not in _NOT_TOLD and _has_handler(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)
                told.append(f"{name} ({pid})")
    return told


def tell_other_nodes() -> None:
    """Do the same on the other nodes of the job, by a step of srun beside those that run there."""
    others = int(os.environ["SLURM_JOB_NUM_NODES"]) - 1
    command = [
        "srun", "--overlap", "--relative=1", f"--nodes={others}", f"--ntasks={others}",
        "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=0", "--gres=none", "--quiet",
        sys.executable, "-m", __name__,
    ]  # fmt: skip
    with contextlib.suppress(OSError):  # no srun here: nothing runs on other nodes either
        subprocess.Popen(command, stdin=subprocess.DEVNULL)


def _of_job() -> set[int]:
    """Return the processes below this one, and tasks that srun has started on this node."""
    marks = {
        f"{name}={os.environ[name]}".encode() for name in _MARKS if name in os.environ
    }  # fmt: skip
    found = set(descendants())
    for pid, _ in _living() if marks else ():
        with contextlib.suppress(OSError):
            if marks <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                found.add(pid)
    return found - {os.getpid()}


_MARKS = ("SLURM_JOB_ID", "SLURM_CLUSTER_NAME", "SLURM_SUBMIT_DIR")
"""Variables that all processes of a job have alike, and those of no other job."""


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _has_handler(pid: int) -> bool:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGUSR2 - 1) & 1)
    return False


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


if __name__ == "__main__":
    tell()
