"""What a person sees while a data set is read: a bar in a terminal, elsewhere a line at times."""

import sys
import time

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from smt.datasets.hashing import ProgressCallback

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class ProgressBar(ProgressCallback):
    """Files and bytes that are done, on stderr. Use it as a context manager around a reading."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._files = self._bytes = self._all_files = 0
        self._started = self._said = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("files, {task.fields[rate]:.0f} MB/s,"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=None, rate=0.0)

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def expect(self, files: int) -> None:
        """Say how many files there are."""
        self._all_files = files
        self._bar.update(self._task, total=files)

    def __call__(self, files: int, size: int) -> None:
        """Count files and their bytes as done."""
        self._files += files
        self._bytes += size
        now = time.monotonic()
        rate = self._bytes / 1e6 / max(now - self._started, 1e-9)
        self._bar.update(self._task, advance=files, rate=rate)
        if self._bar.disable and now - self._said >= EVERY:
            self._said = now
            click.echo(
                f"{self._title}: {self._files} of {self._all_files} files, "
                f"{self._bytes / 1e9:.1f} GB, {rate:.0f} MB/s",
                err=True,
            )
