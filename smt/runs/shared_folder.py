"""Files that other hosts write, on a file system that caches what is in its folders.

An NFS client remembers for up to a minute (`acdirmax`) that a file did not exist when it last
looked: until then neither `stat` nor `open` finds a file that another host has written since. To
list the folder asks the server, and ends that. What decides by a file's absence does so by these
functions; the executor, a package of its own, has the same.
"""

import os
from contextlib import suppress
from pathlib import Path


def refresh(path: Path) -> None:
    """List the folder of a path, so that this host sees what others did in it.

    If that seems to be missing, first those above it, the highest first. Folders that cannot be
    listed are left out.
    """
    chain = path.absolute().parents
    missing = sum(not os.path.lexists(folder) for folder in chain)
    for folder in reversed(chain[: missing + 1]):
        with suppress(OSError), os.scandir(folder) as entries:
            for _ in entries:
                pass


def exists(path: Path) -> bool:
    """Return whether a path exists, also if another host has just written it.

    Raises:
        OSError: the file system gives no answer.
    """
    if path.exists():
        return True
    refresh(path)
    return path.exists()


def read_bytes(path: Path) -> bytes:
    """Return a file's content, also if another host has just written it.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        refresh(path)
        return path.read_bytes()
