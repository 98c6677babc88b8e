"""What is used of submitit. Its import takes a while: only runs of Snakemake with jobs need it."""

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths

from snakemake_executor_plugin_submitit.internals import require

__all__ = ["FailedJobError", "FailedSubmissionError", "JobPaths", "SlurmExecutor"]
# Not in submitit's public interface: the paths of its files, and errors with sbatch's message.


def check() -> None:
    """Check that the installed version has all that is used.

    Raises:
        ApiError: with the name of what is missing.
    """
    require("submitit", "SlurmExecutor", submitit.SlurmExecutor, ("_make_submission_command",))
    require("submitit", "JobPaths", JobPaths, (
        "submitted_pickle", "result_pickle", "submission_file", "stdout",
    ))  # fmt: skip


class SlurmExecutor(submitit.SlurmExecutor):
    """Submitit's executor, with more arguments for sbatch and a clean environment.

    Submitit has parameters for sbatch's options, but not for its command line.
    """

    sbatch_arguments: Sequence[str] = ()
    hidden_variables: Collection[str] = ()
    """Environment variables that sbatch must not see."""
    script: Path | None = None
    """The batch script of the last submission. SLURM has its own copy of it."""

    @classmethod
    def affinity(cls) -> int:
        """Return whether SLURM can be used here: that takes sbatch, but not srun."""
        return -1 if shutil.which("sbatch") is None else 2

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        self.script = submission_file_path
        unset = [option for name in self.hidden_variables for option in ("-u", name)]
        return ["env", *unset, "sbatch", *self.sbatch_arguments, str(submission_file_path)]


def without_throttling(executor: Any) -> Any:
    """Return the executor of submitit, without its pause of 0.2 s before each job."""
    executor._throttling = 0.0
    return executor
