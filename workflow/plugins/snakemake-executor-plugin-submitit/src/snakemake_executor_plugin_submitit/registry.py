"""The jobs that Snakemake has submitted, one small file each, for the next run of Snakemake.

A record is written before its job is submitted, and completed with the job id that SLURM returns:
the next run finds every submitted job, by its id or by its name.
"""

import fcntl
import json
import os
import socket
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from snakemake_executor_plugin_submitit import shared_folder
from snakemake_executor_plugin_submitit.attempts import Attempts


@dataclass(frozen=True)
class Record:
    """One submitted job of Snakemake."""

    key: str
    """Digest of its outputs; names its files."""
    name: str
    """The job's name in SLURM, which contains the key."""
    directory: str
    """The working directory of its Snakemake."""
    contents: dict[str, dict[str, str]]
    """For each output, a digest for each kind of change (`contents.contents`)."""
    request: str
    """Digest of the resources that it requests from SLURM."""
    job_id: str | None = None
    """Its id in SLURM, or None if sbatch has not returned one."""
    resubmissions: int = 0
    """How often it was submitted again; requeues of SLURM do not count."""
    cancelled: bool = False
    """Whether Snakemake cancelled it; it may take a while to end."""

    @property
    def title(self) -> str:
        """Its id and name, for messages."""
        return f"job {self.job_id} ({self.name})"

    def covers(self, contents: dict[str, dict[str, str]]) -> bool:
        """Return whether this job makes all outputs of `contents`."""
        return set(contents) <= set(self.contents)

    def changes(self, contents: dict[str, dict[str, str]], kinds: Collection[str]) -> list[str]:
        """Return the kinds of change, of those in `kinds`, in which `contents` differs."""
        return sorted(
            kind for kind in kinds
            if any(
                self.contents.get(output, {}).get(kind) != digests[kind]
                for output, digests in contents.items()
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
            except FileNotFoundError:  # removed on another host since the folder was listed
                continue
            if record.directory == str(Path.cwd()):  # otherwise the directory was copied
                yield record

    def lock(self) -> str | None:
        """Lock the folder for this process; return the process that holds the lock, if any.

        The lock ends with the process, also with kill -9.

        Raises:
            OSError: the folder's file system does not support locks.
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
        """Return the attempts at a record's job."""
        return Attempts(self.folder, record.key)

    def all(self) -> list[Record]:
        """Return all records."""
        return list(self._records.values())

    def overlapping(self, outputs: Iterable[str]) -> list[Record]:
        """Return the records of jobs that make any of `outputs`."""
        names = set(outputs)
        return [record for record in self._records.values() if names & set(record.contents)]

    def write(self, record: Record) -> Record:
        """Write a record to disk, in place of the one with the same key."""
        path = self.folder / f"{record.key}.json"
        temporary = path.with_suffix(".draft")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(record), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._records[record.key] = record
        return record

    def update(self, record: Record, **changes: Any) -> Record:
        """Write a record with other values in some fields, and return it."""
        return self.write(replace(record, **changes))

    def remove(self, record: Record) -> list[OSError]:
        """Remove a record and the files of its attempts; return the errors of those that stay."""
        self._records.pop(record.key, None)
        try:
            paths = self.attempts(record).files()
        except OSError as error:
            return [error]
        return shared_folder.remove([self.folder / f"{record.key}.json", *paths])
