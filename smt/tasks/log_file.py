"""A run's own log file, beside what its training says on stderr."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smt.runs.atomic import detach


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Write the log to `path` as well within the body.

    Raises:
        OSError: the file cannot be written.
    """
    detach(path)
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        with suppress(OSError):
            handler.close()


class _LogFile(logging.FileHandler):
    """The run's log. On a full disk its lines are lost, which stderr has as well; nothing fails."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Drop the line."""
