"""A job's processes on its first node: starting, signalling and reaping them."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

BLOCKED_SIGNALS = (signal.SIGCHLD, signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT)
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def become_subreaper() -> None:
    """Make this process, not init, the parent of orphaned descendants."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def block_signals() -> None:
    """Queue BLOCKED_SIGNALS for `next_signal`, in place of running their handlers."""
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)


def next_signal(seconds: float) -> signal.Signals | None:
    """Return the next of BLOCKED_SIGNALS, or None if none arrives within `seconds`."""
    info = signal.sigtimedwait(BLOCKED_SIGNALS, max(seconds, 0))
    return None if info is None else signal.Signals(info.si_signo)


def start(
    command: str, environment: dict[str, str], ignore_sigusr2: bool
) -> "subprocess.Popen[bytes]":
    """Start a shell command; with `ignore_sigusr2` it and its children ignore SIGUSR2.

    Otherwise a SIGUSR2 to all processes of the job would end Snakemake and shells at once, while
    the trainer below them still saves. A process that installs a handler receives the signal.
    """

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED_SIGNALS)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN if ignore_sigusr2 else signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)

    return subprocess.Popen(
        ["/bin/bash", "-c", command],
        stdin=subprocess.DEVNULL,
        env=environment,
        preexec_fn=prepare,
    )


def descendants() -> list[int]:
    """Return the ids of all running processes below this one."""
    children: dict[int, list[int]] = {}
    for pid, parent in _running_processes():
        children.setdefault(parent, []).append(pid)
    pids: list[int] = []
    level = [os.getpid()]
    while level:
        level = [child for pid in level for child in children.get(pid, [])]
        pids += level
    return pids


def _running_processes() -> Iterator[tuple[int, int]]:
    """Yield (process id, parent's id) of every process on this node that is no zombie."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # "pid (name) state parent ...", where the name may contain anything
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except (OSError, ValueError):
                continue
            if state != "Z":
                yield int(entry.name), int(parent)


def signal_descendants(number: signal.Signals) -> None:
    """Send a signal to all processes below this one."""
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


# --- SIGUSR2: save and stop -----------------------------------------------------------------------

_SKIPPED_PROGRAMS = ("srun", "slurmstepd")
"""srun would forward the signal to all its tasks, and end those without a handler; slurmstepd
belongs to SLURM."""


def send_sigusr2() -> list[str]:
    """Send SIGUSR2 to the job's processes on this node that have a handler for it.

    It would end all others. Returns the receivers, each as `name (pid)`.
    """
    receivers = []
    for pid in _job_processes():
        name = _name(pid)
        if name and name not in _SKIPPED_PROGRAMS and _has_handler(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)
                receivers.append(f"{name} ({pid})")
    return receivers


def send_sigusr2_on_other_nodes() -> None:
    """Run `send_sigusr2` on the job's other nodes, as an overlapping step of srun."""
    others = int(os.environ["SLURM_JOB_NUM_NODES"]) - 1
    command = [
        "srun", "--overlap", "--relative=1", f"--nodes={others}", f"--ntasks={others}",
        "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=0", "--gres=none", "--quiet",
        sys.executable, "-m", __name__,
    ]  # fmt: skip
    with contextlib.suppress(OSError):  # without srun nothing runs on other nodes
        subprocess.Popen(command, stdin=subprocess.DEVNULL)


_JOB_VARIABLES = ("SLURM_JOB_ID", "SLURM_CLUSTER_NAME", "SLURM_SUBMIT_DIR")
"""Variables that together identify a process's job."""


def _job_processes() -> set[int]:
    """Return the processes below this one, and the job's tasks of srun on this node."""
    variables = {
        f"{name}={os.environ[name]}".encode() for name in _JOB_VARIABLES if name in os.environ
    }
    pids = set(descendants())
    for pid, _ in _running_processes() if variables else ():
        with contextlib.suppress(OSError):
            if variables <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                pids.add(pid)
    return pids - {os.getpid()}


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
    """Reap terminated orphans; the status of `child` is left to its Popen."""
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None or (info.si_pid == child.pid and child.returncode is None):
            return
        os.waitpid(info.si_pid, 0)


if __name__ == "__main__":
    send_sigusr2()
