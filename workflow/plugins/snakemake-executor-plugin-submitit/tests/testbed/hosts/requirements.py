"""What hosts need of the machine: root, namespaces, overlays, virtual cables."""

import functools
import os
import shutil
import subprocess

_PROGRAMS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2"}
"""Program -> its Debian package."""

_TRIAL = """
mount -t tmpfs trial /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work trial /mnt/root
ip link add name br0 type bridge
ip link add name cable type veth peer name eth0
"""


@functools.cache
def missing_requirement() -> str:
    """Return what this machine or user lacks for hosts, or an empty text: it is tried out."""
    if os.geteuid() != 0:
        return "several hosts on one machine need root"
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is not installed (apt-get install {package})"
    trial = subprocess.run(
        ["unshare", "-m", "-n", "-p", "-u", "-i", "-C", "--fork", "--mount-proc",
         "--propagation", "private", "sh", "-e", "-c", _TRIAL],
        capture_output=True, text=True,
    )  # fmt: skip
    if trial.returncode == 0:
        return ""
    return f"namespaces are not allowed here: {(trial.stderr.strip() or 'no message')!r}"
