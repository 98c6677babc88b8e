"""What a person sees of a training: a bar in a terminal, one line an epoch elsewhere."""

import logging
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TypeVar

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from smt.engine.data_wait import DataWait
from smt.engine.distributed import Ranks
from smt.errors import first_line
from smt.runs.progress import DATA_WAIT

log = logging.getLogger(__name__)

T = TypeVar("T")


class Progress:
    """Throughput, memory and what is left, on rank 0; silent on the others.

    Use it as a context manager around a training.
    """

    def __init__(self, title: str, *, epochs: int, epoch_images: int, ranks: Ranks) -> None:
        self._title, self._epochs, self._epoch_images = title, epochs, epoch_images
        self._ranks = ranks
        self._images, self._since = 0, time.monotonic()
        self._loss = float("nan")
        self._pauses = 0.0
        self._data_wait = DataWait()
        self._recorded = self._epoch_times = self._data_wait.times()
        self._unreadable: set[str] = set()
        self._epoch_started, self._epoch_first = time.monotonic(), 0
        psutil.cpu_percent()  # from here on it counts
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images, loss {task.fields[loss]:.3f}, data wait {task.fields[wait]:.0%},"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (ranks.is_first and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task(
            title, total=epochs * epoch_images, loss=self._loss, wait=float("nan")
        )

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def resume_at(self, images: int) -> None:
        """Say how many images earlier attempts have seen."""
        self._bar.update(self._task, completed=images)
        self._epoch_first = self._images = images % self._epoch_images

    def images(self, count: int) -> None:
        """Count images that all ranks have seen."""
        self._images += count
        self._bar.advance(self._task, count)

    def measured(self, micro_batches: Iterator[T]) -> Generator[T, None, None]:
        """Yield micro-batches, and measure how long they are waited for until this is closed."""
        return self._data_wait.measured(micro_batches)

    def loss(self, value: float) -> None:
        """Show the mean training loss since the last record."""
        self._loss = value
        self._bar.update(self._task, loss=value)

    def add_pause(self, seconds: float) -> None:
        """Count time for which training stood still so that its state could be copied."""
        self._pauses += seconds

    def system(self) -> dict[str, float]:
        """Return what the machine did since the epoch began.

        Images per second, peak memory in MB of this process, seconds of pauses for checkpoints. In
        percent, since the last call: how much of the time of steps this process waited for its data
        (left out where there was no step), and how busy all cores of the machine were; and now the
        GPU. What the GPU's driver does not tell is left out.
        """
        seconds = max(time.monotonic() - self._epoch_started, 1e-9)
        return {
            "system/images_per_second": (self._images - self._epoch_first) / seconds,
            "system/memory_mb": self._memory_mb(),
            "system/checkpoint_pauses": self._pauses,
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            **self._waited(),
            **self._gpu(),
        }

    def _waited(self) -> dict[str, float]:
        now = self._data_wait.times()
        share, self._recorded = now.share_since(self._recorded), now
        if share is None:
            return {}
        self._bar.update(self._task, wait=share)
        return {DATA_WAIT: 100 * share}

    def _gpu(self) -> dict[str, float]:
        device = self._ranks.device
        if device.type != "cuda":
            return {}
        sensors: dict[str, Callable[[], float]] = {
            "system/gpu_utilization_percentage": lambda: float(torch.cuda.utilization(device)),
            "system/gpu_power_usage_watts": lambda: torch.cuda.power_draw(device) / 1000,
        }
        values = {}
        for name, read in sensors.items():
            # NVML does not answer for MIG slices, under old drivers, without permission or without
            # its library. Its errors have no base in common with torch's.
            try:
                values[name] = read()
            except Exception as error:
                self._warn_unreadable(name, error)
        return values

    def _warn_unreadable(self, name: str, error: Exception) -> None:
        if name not in self._unreadable:
            self._unreadable.add(name)
            log.warning("no %s in the journal: NVML: %s", name, first_line(error))

    def epoch(self, done: int, metrics: Mapping[str, float]) -> None:
        """Log the line of an epoch, evaluation included in its time."""
        seconds = time.monotonic() - self._epoch_started
        system, times = self.system(), self._data_wait.times()
        share = times.share_since(self._epoch_times) or 0.0
        numbers = "".join(f", {name} {value:.2f}" for name, value in metrics.items())
        log.info(
            "%s: epoch %d/%d, train loss %.4f%s, %.0f images/s, data wait %.0f %%, %.0f MB, "
            "%s left",
            self._title,
            done,
            self._epochs,
            self._loss,
            numbers,
            system["system/images_per_second"],
            100 * share,
            system["system/memory_mb"],
            duration((self._epochs - done) * seconds),
        )
        self._epoch_started, self._epoch_first, self._images = time.monotonic(), 0, 0
        self._epoch_times = times
        self._pauses = 0.0

    def _memory_mb(self) -> float:
        if self._ranks.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._ranks.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def duration(seconds: float) -> str:
    """Return a time span as `1 h 02 min`, `3 min 04 s` or `5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
