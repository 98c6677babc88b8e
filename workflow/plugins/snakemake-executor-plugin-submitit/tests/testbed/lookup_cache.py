"""A fake of an NFS client's cache: a file that did not exist is absent until its folder is listed.

It is in this process alone. The real one is in `test_nfs.py`.
"""

import builtins
import errno
import io
import os
import subprocess
import sys

_WRITE = """
import pathlib, sys
path = pathlib.Path(sys.argv[1])
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(sys.argv[2])
"""


class FakeLookupCache:
    """The lookups below a folder that failed. `install` lets this process look there first."""

    def __init__(self, folder):
        self._folder, self._absent = os.path.realpath(folder), set()

    def install(self, monkeypatch):
        """Replace the functions that look up names, until the test ends."""
        for module, name in [
            (os, "stat"), (os, "lstat"), (os, "open"), (os, "unlink"), (io, "open"),
            (builtins, "open"),
        ]:  # fmt: skip
            monkeypatch.setattr(module, name, self._cached(getattr(module, name)))
        scandir = os.scandir

        def listed(folder="."):
            entries = self._cached(scandir)(folder)
            path = _absolute(folder)
            self._absent = {each for each in self._absent if each.rpartition("/")[0] != path}
            return entries

        monkeypatch.setattr(os, "scandir", listed)

    def _cached(self, function):
        def call(path, *arguments, **options):
            if isinstance(path, int):
                return function(path, *arguments, **options)
            name = _absolute(path)
            parents = {name[:end] for end, char in enumerate(f"{name}/") if char == "/"}
            if self._absent & parents:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            try:
                return function(path, *arguments, **options)
            except FileNotFoundError:
                if name.startswith(self._folder):
                    self._absent.add(name)
                raise

        return call


def _absolute(path):
    """Return an absolute path without looking at any file."""
    return os.path.normpath(os.path.join(os.getcwd(), os.fspath(path)))  # noqa: PTH109, PTH118


def write_on_another_host(path, text=""):
    """Write a file in a process that does not have this one's cache, which has looked for it."""
    assert not path.exists()
    subprocess.run([sys.executable, "-c", _WRITE, str(path), text], check=True)
    assert not path.exists()  # as on NFS, for half a minute
