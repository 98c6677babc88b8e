"""What a training tells whoever started it as a job: how far it is, and that it wants to go on.

The job's environment names a file for each; without them nothing is said. Imported early, so it
imports no torch.
"""

import os
from pathlib import Path

PROGRESS = "SNAKEMAKE_SUBMITIT_PROGRESS"
RESUME = "SNAKEMAKE_SUBMITIT_RESUME"


def tell_progress(step: int) -> None:
    """Say that another attempt would go on from `step`: its state is on disk."""
    _write(PROGRESS, f"step {step}")


def ask_for_another_attempt() -> None:
    """Ask to be started again, before this process ends with EXIT_RESUME."""
    _write(RESUME, "resume")


def _write(variable: str, content: str) -> None:
    path = os.environ.get(variable)
    if path:
        draft = Path(f"{path}.{os.getpid()}")
        draft.write_text(content, encoding="ascii")
        draft.replace(path)
