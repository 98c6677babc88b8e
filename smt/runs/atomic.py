"""Writing small files so that a reader, or a crash, never sees half of one."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from smt.errors import UserError
from smt.runs import shared_folder

RESULTS_REMEDY = "give a results folder that can be written: smt --results DIR, or SMT_RESULTS"
"""What to do where `explained` wraps a write into the results folder."""


@contextmanager
def replacing(
    path: Path, *, single_writer: bool = False, permit: "Permit | None" = None
) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing; on success it takes the place of `path`.

    The content is on disk before the rename. After an error `path` is as it was, and an OSError of
    the temporary file has the name `path`, the only one that a user knows. With a
    `single_writer` the temporary file always has the same name: what a killed process left behind,
    which may be a gigabyte, is overwritten. `permit` is as for `publish`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = "" if single_writer else f".{os.getpid()}"
    temporary = path.with_name(f".{path.name}{writer}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        publish(temporary, path, permit)
    except OSError as problem:
        if str(problem.filename) == str(temporary):
            problem.filename, problem.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


Permit = Callable[[], object]
"""Raises an exception where a file must not get its name."""


def publish(temporary: Path, path: Path, permit: Permit | None = None) -> None:
    """Give a file that is written its name, once its content is on disk; then sync the folder.

    `permit` is asked just before the rename: writing may have taken minutes.
    """
    _sync(temporary)
    if permit is not None:
        permit()
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unfinished(folder: Path) -> Path:
    """Return where a folder is filled before it takes its place: the same for every process."""
    return folder.with_name(f".{folder.name}.tmp")


def fresh_folder(folder: Path) -> None:
    """Make an empty `unfinished` folder, whatever an earlier attempt has left there."""
    shutil.rmtree(unfinished(folder), ignore_errors=True)
    unfinished(folder).mkdir(parents=True)


def publish_folder(folder: Path) -> None:
    """Give a filled folder its name, once its files are on disk, in place of what had it before."""
    filled, before = unfinished(folder), folder.with_name(f".{folder.name}.old")
    for path in sorted(filled.iterdir()):
        _sync(path)
    shutil.rmtree(before, ignore_errors=True)
    if shared_folder.exists(folder):
        folder.replace(before)
    publish(filled, folder)
    shutil.rmtree(before, ignore_errors=True)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's bytes to `path`, whole or not at all; for one process at a time."""
    with source.open("rb") as content, replacing(path, single_writer=True) as file:
        shutil.copyfileobj(content, file)


def detach(path: Path) -> None:
    """Put a copy in the place of `path`, if it is there: it will be written to.

    A process that has it open, on a host that was cut off, then writes to a file without a name.
    """
    if shared_folder.exists(path):
        copy_file(path, path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as JSON, whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """Return what `write_json` wrote, or None where there is no such file."""
    try:
        return json.loads(shared_folder.read_bytes(path))
    except FileNotFoundError:
        return None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explained(path: Path, remedy: str, error: type[UserError] = UserError) -> Iterator[None]:
    """Turn a failed write in the body into one line: `path`, the cause, `remedy`.

    Raises:
        UserError: or the given kind of it, in place of an OSError.
    """
    try:
        yield
    except OSError as problem:
        where = problem.filename or path
        raise error(f"{where}: {_cause(problem)}; {remedy}") from None


def require_writable(path: Path, remedy: str) -> None:
    """Check that a file can be written to `path`, before the work whose outcome it takes.

    Nothing is made: `replacing` makes the folders that are missing.

    Raises:
        UserError: as `explained`.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise UserError(f"{path}: {_cause(problem)}; {remedy}") from None


def _cause(problem: OSError) -> str:
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission to write there"
    return problem.strerror or str(problem)
