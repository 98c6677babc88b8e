"""What a person sees of an evaluation that takes hours: a bar in a terminal, elsewhere lines."""

import sys
import time

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from smt.datasets.progress import EVERY
from smt.engine.progress import duration


class EvaluationProgress:
    """Images that are done, top-1 so far and the time that is left, on stderr.

    Use it as a context manager around the evaluation.
    """

    def __init__(self, title: str, images: int, done: int) -> None:
        """`done` images of `images` come from earlier calls."""
        self._title, self._images, self._done, self._first = title, images, done, done
        self._started = self._said = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images, top-1 {task.fields[top1]:.2f},"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=images, completed=done, top1=float("nan"))

    def __enter__(self) -> "EvaluationProgress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def show(self, done: int, top1: float) -> None:
        """Say how many images are done, and the share in percent that is right in one guess."""
        self._done = done
        self._bar.update(self._task, completed=done, top1=top1)
        now = time.monotonic()
        if self._bar.disable and now - self._said >= EVERY:
            self._said = now
            rate = (done - self._first) / (now - self._started)
            left = duration((self._images - done) / rate) if rate else "unknown"
            click.echo(
                f"{self._title}: {done:,} of {self._images:,} images, top-1 {top1:.2f}, "
                f"{rate:.1f} images/s, {left} left",
                err=True,
            )
