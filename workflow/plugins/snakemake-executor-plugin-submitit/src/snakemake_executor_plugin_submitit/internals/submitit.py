"""What is used of submitit. Importing it takes a moment: only a start that runs jobs does."""

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths

from snakemake_executor_plugin_submitit.internals import require

__all__ = ["FailedJobError", "FailedSubmissionError", "JobPaths", "SlurmExecutor"]
# JobPaths says where submitit's files are, of which it tells nobody; the errors, what sbatch said.


def check() -> None:
    """Ask whether all that is used is there.

    Raises:
        ApiError: naming what is not.
    """
    require("submitit", "SlurmExecutor", submitit.SlurmExecutor, ("_make_submission_command",))
    require("submitit", "JobPaths", JobPaths, (
        "submitted_pickle", "result_pickle", "submission_file", "stdout",
    ))  # fmt: skip


class SlurmExecutor(submitit.SlurmExecutor):
    """Submitit's own, whose sbatch gets further arguments and a clean environment.

    It has parameters for the options of sbatch, but none for how sbatch is called.
    """

    further: Sequence[str] = ()
    kept_away: Collection[str] = ()
    """Variables of the environment that sbatch must not see."""
    script: Path | None = None
    """What sbatch was last given. SLURM has a copy from then on."""

    @classmethod
    def affinity(cls) -> int:
        """Return whether this may be a cluster: sbatch is all that is needed, not srun."""
        return -1 if shutil.which("sbatch") is None else 2

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        self.script = submission_file_path
        unset = [option for variable in self.kept_away for option in ("-u", variable)]
        return ["env", *unset, "sbatch", *self.further, str(submission_file_path)]


def without_pauses(executor: Any) -> Any:
    """Return an executor of submitit that does not sleep for 0.2 s before each job."""
    executor._throttling = 0.0
    return executor
