"""What is made once in a run of pytest, for all of its workers."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(
    factory: pytest.TempPathFactory, worker: str, name: str, make: Callable[[Path], object]
) -> Path:
    """Return the folder `name` of this run of pytest, which `make` has filled.

    `worker` is what the fixture `worker_id` says. Whoever comes while it is made waits; after a
    failure the next one makes it from nothing. Tests change copies of it alone.
    """
    base = factory.getbasetemp()
    folder = (base if worker == "master" else base.parent) / "made_once" / name
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
