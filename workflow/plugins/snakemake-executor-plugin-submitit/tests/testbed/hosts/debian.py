"""The root of another Debian, for hosts with other versions of its programs."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .errors import HostsError

MIRROR = "http://deb.debian.org/debian"
_LAST_LINES = 3


def cached_root(suite: str, packages: Sequence[str]) -> Path:
    """Return the folder of a minimal Debian with these packages, which is made on first use.

    It is kept in the user's cache folder, as it takes minutes and several hundred MB.

    Raises:
        HostsError: debootstrap is not installed, or cannot get the packages.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "testbed"
    digest = hashlib.sha256(" ".join([suite, *packages]).encode()).hexdigest()
    folder = cache / f"{suite}-{digest[:8]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _make(folder, suite, packages)
    return folder


def _make(folder: Path, suite: str, packages: Sequence[str]) -> None:
    if shutil.which("debootstrap") is None:
        raise HostsError("debootstrap is not installed (apt-get install debootstrap)")
    incomplete = folder.with_name(f"{folder.name}.incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    # In namespaces of its own, which end its mounts and whatever its packages start.
    command = [
        "unshare", "-m", "-p", "-i", "-u", "--fork", "--kill-child", "--mount-proc",
        "--propagation", "private", "debootstrap", "--variant=minbase",
        f"--include={','.join(packages)}", suite, str(incomplete), MIRROR,
    ]  # fmt: skip
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if process.returncode:
        lines = process.stdout.strip().splitlines()[-_LAST_LINES:]
        raise HostsError(f"debootstrap {suite}: {' | '.join(lines)}")
    incomplete.rename(folder)
