"""Polling for all jobs at once: results in the folder, and statuses in SLURM."""

import contextlib
import os
import time
from pathlib import Path

from snakemake_interface_executor_plugins.logging import LoggerExecutorInterface

from snakemake_executor_plugin_submitit.backends import Backend
from snakemake_executor_plugin_submitit.job_files import result_name
from snakemake_executor_plugin_submitit.slurm import GONE, Status

MAX_BACKOFF = 6
"""Greatest interval between two polls of SLURM, as a multiple of the least one."""


class StatusPoller:
    """The latest results and statuses. `min_interval` is in seconds, for polls of SLURM."""

    def __init__(
        self, backend: Backend, folder: Path, min_interval: float, logger: LoggerExecutorInterface
    ) -> None:
        self._backend, self._folder, self._logger = backend, folder, logger
        self._results: set[str] = set()
        self._statuses: dict[str, Status] = {}
        self._min_interval = self._interval = min_interval
        self._next_poll = 0.0
        self._unreachable = False
        self.poll_time = 0.0
        """When the last poll that SLURM answered began (monotonic seconds)."""

    def has_result(self, job_id: str) -> bool:
        """Return whether a job's result was in the folder."""
        return result_name(job_id) in self._results

    def status(self, job_id: str | None) -> Status:
        """Return a job's status in the last poll of SLURM."""
        return self._statuses.get(job_id or "", GONE)

    def list_results(self) -> None:
        """Look for results in the folder. SLURM is not asked."""
        with contextlib.suppress(OSError):  # those of the last time remain
            names = (entry.name for entry in os.scandir(self._folder))
            self._results = {name for name in names if name.endswith("_result.pkl")}

    def poll_slurm(self) -> bool:
        """Poll SLURM if it is time to; return whether there are new statuses."""
        now = time.monotonic()
        if now < self._next_poll:
            return False
        statuses = self._backend.statuses()
        self._log_reachability(statuses is not None)
        changed = statuses is not None and statuses != self._statuses
        longest = self._min_interval * MAX_BACKOFF
        self._interval = self._min_interval if changed else min(self._interval * 1.5, longest)
        self._next_poll = time.monotonic() + self._interval
        if statuses is None:
            return False
        self._statuses, self.poll_time = statuses, now
        return True

    def poll_soon(self, seconds: float = 2.0) -> None:
        """Let the next poll of SLURM come within `seconds`, or the least interval if shorter."""
        soon = time.monotonic() + min(seconds, self._min_interval)
        self._next_poll = min(self._next_poll, soon)

    def _log_reachability(self, reachable: bool) -> None:
        if not reachable and not self._unreachable:
            self._logger.warning(
                "submitit: SLURM does not answer; jobs keep running, and Snakemake waits"
            )
        if reachable and self._unreachable:
            self._logger.info("submitit: SLURM answers again")
        self._unreachable = not reachable
