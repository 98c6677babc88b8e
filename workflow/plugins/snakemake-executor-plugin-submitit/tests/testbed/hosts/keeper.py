"""`python -m testbed.hosts.keeper [GROUP]`: keep a room until SIGTERM, then end all that is in it.

The room is a process with its own network, mounts and process ids, in which the hosts are. When it
ends the kernel kills every process in it, and mounts and interfaces go with them. Control groups
remain, and are removed here.
"""

import signal
import subprocess
import sys

from .cgroups import Cgroups

# Mounted over /mnt, which only this room sees: what the hosts write.
_ROOM = """
mount -t tmpfs room /mnt
ip link set lo up
ip link add name br0 type bridge forward_delay 0
ip link set br0 up
touch /mnt/ready
trap : TERM
while :; do sleep infinity & wait; done
"""

COMMAND = [
    # Killed with this process, even by kill -9; unshare kills the room.
    "setpriv", "--pdeathsig", "KILL",
    "unshare", "-m", "-n", "-p", "--fork", "--kill-child", "--mount-proc",
    "--propagation", "private", "sh", "-e", "-c", _ROOM,
]  # fmt: skip


def main() -> int:
    """Return 0 after a signal, or 1 if the room ended by itself."""
    stops = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    groups = Cgroups.named(sys.argv[1]) if len(sys.argv) > 1 else None
    room = subprocess.Popen(
        COMMAND, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
    )
    signal.sigwait(stops)
    ended_by_itself = room.poll() is not None
    room.kill()
    room.wait()
    if groups is not None:
        groups.remove()
    return int(ended_by_itself)


if __name__ == "__main__":
    sys.exit(main())
