"""What Snakemake must still know of its jobs when it is started again: one small file for each.

A record is written before a job is submitted and completed once SLURM has given it a number, so
that no job is ever submitted that the next start does not find: by its number, or by its name.
"""

import fcntl
import json
import os
import socket
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from snakemake_executor_plugin_submitit.attempts import Attempts


@dataclass(frozen=True)
class Record:
    """One job of Snakemake that was handed on."""

    key: str
    """Names the files of the job; made from what it makes."""
    name: str
    """The job's name in SLURM. The key is a part of it."""
    directory: str
    """The working directory of its Snakemake."""
    contents: dict[str, dict[str, str]]
    """For each thing that it makes a digest of each kind of what that is made from."""
    request: str
    """A digest of what it asks of the cluster."""
    job_id: str | None = None
    """SLURM's number of it, or None if that was never learnt."""
    resubmissions: int = 0
    """How often it was submitted anew, as opposed to requeued by SLURM."""
    cancelled: bool = False
    """Whether Snakemake cancelled it; it may take its time to end."""

    @property
    def title(self) -> str:
        """What a line for the user calls it."""
        return f"job {self.job_id} ({self.name})"

    def covers(self, contents: dict[str, dict[str, str]]) -> bool:
        """Return whether this job makes all that another would."""
        return set(contents) <= set(self.contents)

    def changes(self, contents: dict[str, dict[str, str]], kinds: Collection[str]) -> list[str]:
        """Return of which of these kinds anything differs from what another job is made from."""
        return sorted(
            kind for kind in kinds
            if any(
                self.contents.get(made, {}).get(kind) != each[kind]
                for made, each in contents.items()
            )
        )  # fmt: skip


class Registry:
    """All records in the folder of a workflow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock: IO[str] | None = None
        self._records = {record.key: record for record in self._read()}

    def _read(self) -> Iterable[Record]:
        for path in self.folder.glob("*.json"):
            try:
                record = Record(**json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError):  # of another version of this plugin
                continue
            if record.directory == str(Path.cwd()):  # else this is a copy of that directory
                yield record

    def lock(self) -> str | None:
        """Take the folder for this process; return who has it, if somebody else does.

        The lock goes with the process, however that ends.

        Raises:
            OSError: the file system of the folder has no locks.
        """
        path = self.folder / "driver"
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return path.read_text(encoding="utf-8").strip() or "another process"
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._lock = file
        return None

    def attempts(self, record: Record) -> Attempts:
        """Return the attempts at the job of a record."""
        return Attempts(self.folder, record.key)

    def inputs(self, key: str) -> Path:
        """Return the list of files that a job waits for, where there are many."""
        return self.folder / f"{key}.inputs"

    def all(self) -> list[Record]:
        """Return all records."""
        return list(self._records.values())

    def overlapping(self, made: Iterable[str]) -> list[Record]:
        """Return the records of jobs that make anything of `made`."""
        wanted = set(made)
        return [each for each in self._records.values() if wanted & set(each.contents)]

    def write(self, record: Record) -> Record:
        """Bring a record to disk, in place of what was there under its key."""
        path = self.folder / f"{record.key}.json"
        draft = path.with_suffix(".draft")
        with draft.open("w", encoding="utf-8") as file:
            json.dump(asdict(record), file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        self._records[record.key] = record
        return record

    def update(self, record: Record, **changes: Any) -> Record:
        """Return and write a record with other values in some of its fields."""
        return self.write(replace(record, **changes))

    def remove(self, record: Record) -> None:
        """Forget a job, its attempts included."""
        self._records.pop(record.key, None)
        (self.folder / f"{record.key}.json").unlink(missing_ok=True)
        self.inputs(record.key).unlink(missing_ok=True)
        self.attempts(record).remove()
