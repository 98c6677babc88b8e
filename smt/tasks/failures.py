"""What ends a training before its time: its own failure, a lost rank, or a lost claim."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smt.config.experiments import Run
from smt.engine import distributed
from smt.engine.distributed import PeerFailed, PeerLost, Ranks
from smt.engine.guard import TrainingDiverged
from smt.engine.trainer import RETRY, TrainingStopped
from smt.errors import EXIT_TRAINING, TrainingError, UserError, first_line
from smt.runs import provenance, record
from smt.runs.claim import Claim, ClaimLost

log = logging.getLogger(__name__)

PEER_FAILURE_TIMEOUT = 3.0
"""Seconds to wait for the failure record of a rank whose connection was lost."""
_FULL = 1 << 20
"""Free bytes of a file system on which a checkpoint has no room, and a record may have none."""


class Failures:
    """Says on one rank why its training ends, and records it where that is the run's own fault."""

    def __init__(self, run: Run, ranks: Ranks, work_dir: Path) -> None:
        self._run, self._ranks, self._work_dir = run, ranks, work_dir

    @contextmanager
    def detect_lost_claim(self, claim: Claim) -> Iterator[None]:
        """Turn any error into ClaimLost once another process has taken over the run.

        Its files are replaced then under this one, which may meet that as any error.
        """
        try:
            yield
        except (ClaimLost, TrainingStopped):
            raise
        except Exception:
            with suppress(OSError):
                claim.require()
            raise

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record the cause of a failure in the work folder, whichever rank fails."""
        try:
            yield
        except (
            ClaimLost,
            PeerFailed,
            PeerLost,
            TrainingStopped,
        ):  # not this rank's own failure, or none at all
            raise
        except UserError as error:
            self._record(error, str(error), error.exit_code)
            raise
        except Exception as error:
            if not self._is_loss_of_peer(error):
                cause = f"{type(error).__name__}: {first_line(error)}"
                self._record(error, cause, EXIT_TRAINING)
            raise

    def _record(self, error: Exception, message: str, exit_code: int) -> None:
        step = error.step if isinstance(error, TrainingDiverged) else None
        try:
            provenance.record_failure(self._work_dir, message, step, exit_code)
        except OSError as problem:
            reason = os.strerror(problem.errno or 0)
            log.warning("the cause could not be written to %s: %s", self._work_dir, reason)

    @contextmanager
    def detect_peer_loss(self) -> Iterator[None]:
        """Turn a failed collective into PeerFailed if the other recorded why, else PeerLost.

        Where the disk is full, so that nobody can record anything, it is a TrainingError.
        """
        try:
            yield
        except Exception as error:
            distributed.refuse_misconfiguration(error)
            if isinstance(error, PeerFailed) or not self._is_loss_of_peer(error):
                raise
            code = self._failure_of_peer()
            if code is not None:
                raise PeerFailed(code) from None
            lost = (
                f"{self._run}: rank {self._ranks.rank} of {self._ranks.world_size} lost the "
                "connection to another"
            )
            if _is_full(self._work_dir):
                raise TrainingError(
                    f"{lost}, which could not record why: the disk of {self._work_dir} is full; "
                    f"{RETRY}"
                ) from None
            raise PeerLost(
                f"{lost} ({distributed.cause_of_loss(error)}): killed, or its node is down; the "
                "same command resumes from the last checkpoint"
            ) from None

    def _is_loss_of_peer(self, error: Exception) -> bool:
        return self._ranks.world_size > 1 and distributed.is_loss_of_peer(error)

    def _failure_of_peer(self) -> int | None:
        """Return the exit code of the rank that failed, or None if none recorded one in time."""
        deadline = time.monotonic() + PEER_FAILURE_TIMEOUT
        while True:
            failure = record.read_failure(self._work_dir)
            if failure is not None or time.monotonic() > deadline:
                return failure.exit_code if failure else None
            time.sleep(0.1)


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _FULL
    except OSError:
        return False
