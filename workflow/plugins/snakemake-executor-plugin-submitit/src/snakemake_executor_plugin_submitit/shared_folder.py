"""Files that other hosts write, on a file system that caches what is in its folders. Any host.

An NFS client remembers for up to a minute (`acdirmax`) that a file did not exist when it last
looked: until then neither `stat` nor `open` nor `unlink` finds a file that another host has written
since. To list the folder asks the server, and ends that.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def refresh(*paths: str | Path) -> None:
    """List the folders of these paths, so that this host sees what others did in them.

    Of a folder that seems to be missing, first those above it, the highest first. Folders that
    cannot be listed are left out.
    """
    for nearest in {Path(path).absolute().parent for path in paths}:
        chain = (nearest, *nearest.parents)
        missing = sum(not os.path.lexists(folder) for folder in chain)
        for folder in reversed(chain[: missing + 1]):
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for _ in entries:
                    pass


def exists(path: str | Path) -> bool:
    """Return whether a file exists, also if another host has just written it.

    Raises:
        OSError: the file system gives no answer.
    """
    if Path(path).exists():
        return True
    refresh(path)
    return Path(path).exists()


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


def remove(paths: Iterable[Path]) -> list[OSError]:
    """Remove files, those that exist; return the errors of those that cannot be removed."""
    errors, paths = [], list(paths)
    refresh(*paths)
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            errors.append(error)
    return errors
