"""What a person sees while images are read: a bar in a terminal, elsewhere a line at times."""

import sys
import time
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from smt.datasets.hashing import ProgressCallback

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class LiveBar:
    """A bar on stderr, or a line every `EVERY` seconds where that is no terminal.

    Use it as a context manager around the work.
    """

    def __init__(
        self, title: str, unit: str, *, total: int | None, done: int = 0, **fields: Any
    ) -> None:
        """`unit` is what stands after the counts, a template of the bar's `fields`.

        `done` of the `total` come from earlier calls.
        """
        self._title = title
        self._started = self._said = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, **fields)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    @property
    def _seconds(self) -> float:
        """Time since the start."""
        return max(time.monotonic() - self._started, 1e-9)

    def _say(self, text: str) -> None:
        """Print a line, where there is no terminal and the line before is old enough."""
        now = time.monotonic()
        if self._bar.disable and now - self._said >= EVERY:
            self._said = now
            click.echo(f"{self._title}: {text}", err=True)


class ProgressBar(LiveBar, ProgressCallback):
    """Files and bytes that are done."""

    def __init__(self, title: str) -> None:
        super().__init__(title, "files, {task.fields[rate]:.0f} MB/s,", total=None, rate=0.0)
        self._files = self._bytes = self._all_files = 0

    def expect(self, files: int) -> None:
        """Say how many files there are."""
        self._all_files = files
        self._bar.update(self._task, total=files)

    def __call__(self, files: int, size: int) -> None:
        """Count files and their bytes as done."""
        self._files += files
        self._bytes += size
        rate = self._bytes / 1e6 / self._seconds
        self._bar.update(self._task, advance=files, rate=rate)
        self._say(
            f"{self._files} of {self._all_files} files, {self._bytes / 1e9:.1f} GB, {rate:.0f} MB/s"
        )
