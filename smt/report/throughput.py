"""Images a second of inference: published, and measured here, each with its machine.

`python benchmarks/throughput.py` writes a file for each machine and setting into
`results/benchmarks/`. Numbers of different machines have columns of their own and are not compared.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from smt.runs import record
from smt.runs.paths import Layout
from smt.runs.record import DamagedRecord, Record

NAME = "throughput"
COMMAND = "python benchmarks/throughput.py"


class ThroughputRecord(Record):
    """Inference of some models on one machine, in one setting."""

    machine: str
    """Name of the GPU, or of the CPU."""
    device: str
    """cpu or cuda."""
    threads: int | None
    """Of a CPU; None on a GPU."""
    precision: str
    batch: Annotated[int, Field(gt=0)]
    resolution: Annotated[int, Field(gt=0)]
    """Side of the images in pixels."""
    torch: str
    """Its version."""
    rates: dict[str, Annotated[float, Field(gt=0)]]
    """Images a second, the median of several calls, by the name of the model in models.yaml."""

    @property
    def label(self) -> str:
        """Machine, threads, precision and batch in a phrase."""
        threads = {None: [], 1: ["1 thread"]}.get(self.threads, [f"{self.threads} threads"])
        return ", ".join([self.machine, *threads, self.precision, f"batch {self.batch}"])

    @property
    def stem(self) -> str:
        """Name of its file without suffix, the same for the same machine and setting."""
        words = f"{self.label} {self.resolution}".lower()
        return "-".join("".join(c if c.isalnum() else " " for c in words).split())


@dataclass(frozen=True)
class Throughput:
    """Every measurement of a results folder."""

    measured: tuple[ThroughputRecord, ...] = ()
    damages: tuple[DamagedRecord, ...] = ()
    """Files that cannot be read."""

    @classmethod
    def read(cls, layout: Layout) -> "Throughput":
        """Return what was measured, by the names of the files."""
        measured, damages = [], []
        for path in files(layout):
            try:
                content = record.read(ThroughputRecord, path, f"remove it and run: {COMMAND}")
            except DamagedRecord as damage:
                damages.append(damage)
            else:
                measured += [content] if content is not None else []
        return cls(tuple(measured), tuple(damages))


def files(layout: Layout) -> list[Path]:
    """Return the files of measurements, by name."""
    return sorted(layout.benchmarks.glob("*.json"))


def write(layout: Layout, measured: ThroughputRecord) -> Path:
    """Write a measurement in place of an earlier one of the same machine and setting."""
    path = layout.benchmarks / f"{measured.stem}.json"
    record.write(path, measured)
    return path
