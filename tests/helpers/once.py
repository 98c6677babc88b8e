"""Folders that are made once per run of pytest, for all of its workers."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def make_once(
    factory: pytest.TempPathFactory, worker: str, name: str, make: Callable[[Path], object]
) -> Path:
    """Return the folder `name` of this run of pytest, which `make` fills on the first call.

    `worker` is the value of the fixture `worker_id`. Other workers wait while it is made; after a
    failure the next one makes it again. A test that changes the folder takes a copy.
    """
    base = factory.getbasetemp()
    folder = (base if worker == "master" else base.parent) / "make_once" / name
    folder.mkdir(parents=True, exist_ok=True)
    content, done = folder / name, folder / "done"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(content, ignore_errors=True)
            content.mkdir()
            make(content)
            done.touch()
    return content
