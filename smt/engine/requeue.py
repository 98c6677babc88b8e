"""What a training reports to the SLURM job that started it: its progress, and that it can resume.

The job's environment names a file for each; without them nothing is written. The executor requeues
a job that asks for it, and one that a signal ended after progress: every other failure would only
come again. Imported early, so it imports no torch.
"""

import os
from pathlib import Path

PROGRESS = "SNAKEMAKE_SUBMITIT_PROGRESS"
RESUME = "SNAKEMAKE_SUBMITIT_RESUME"


def report_progress(step: int) -> None:
    """Report that another attempt would resume at `step`: its state is on disk."""
    _write(PROGRESS, f"step {step}")


def request_requeue(*, blocked: bool = False) -> None:
    """Request a requeue, before this process ends with EXIT_RESUME.

    `blocked`: another process holds what it needs, so that it is no fault of this attempt to have
    made no progress.
    """
    _write(RESUME, "blocked" if blocked else "resume")


def _write(variable: str, content: str) -> None:
    path = os.environ.get(variable)
    if path:
        draft = Path(f"{path}.{os.getpid()}")
        draft.write_text(content, encoding="ascii")
        draft.replace(path)
