"""Errors that a user can cause, and the exit codes of every command."""

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_BAD_INPUT = 2
"""A wrong parameter, file, name or argument: nothing was started."""

EXIT_DATA = 3
"""A data set that is missing, incomplete or unreadable."""

EXIT_TRAINING = 4
"""A training that failed: non-finite loss, failed parent, full disk."""

EXIT_UNVERIFIED = 5
"""A recorded value is inconsistent with its sources."""

EXIT_UNDECIDED = 6
"""Bytes differ, and so does the machine or the code: nothing is proved either way."""

EXIT_RESUME = 75
"""Stopped on request with its state saved: run the same command again to resume."""


class UserError(Exception):
    """A mistake that the user can mend; shown as one line, without a traceback.

    The message says what is wrong, where (file and key), what is valid, and what to do.
    """

    exit_code = EXIT_BAD_INPUT


class DataError(UserError):
    """A data set that is missing, incomplete or unreadable."""

    exit_code = EXIT_DATA


class TrainingError(UserError):
    """A training run that failed."""

    exit_code = EXIT_TRAINING


EXTRAS = {
    "dvc": "dvc",
    "matplotlib": "report",
    "mlxtend": "demo",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "skimage": "demo",
    "psycopg2": "postgres",
}
"""Packages that only some commands import, and the extra of `pyproject.toml` that has each."""


def missing_package(error: ImportError) -> UserError | None:
    """Return what to tell whoever lacks an optional package; None for every other import."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return UserError(
        f"this needs {package}, which is not installed; install: "
        f"pip install 'smt-reproduction[{EXTRAS[package]}]'"
    )


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return a phrase that helps whoever mistyped `name`: the nearest valid names, or all."""
    names = sorted(valid)
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"valid: {listed(names, shown=60) or 'none'}"


def first_line(error: Exception) -> str:
    """Return the first line of what an exception says, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def listed(names: Iterable[str], shown: int = 8) -> str:
    """Return the first names in a row and how many more there are, on one line and in ASCII."""
    every = [name if name.isascii() and name.isprintable() else ascii(name) for name in names]
    more = f" and {len(every) - shown:,} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more
