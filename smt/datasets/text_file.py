"""Text files of users, with an entry a line."""

from pathlib import Path

from smt.errors import UserError


def text_lines(path: Path, name: str, advice: str, error: type[UserError] = UserError) -> list[str]:
    """Return the lines of a text file, without empty ones at its end.

    Raises:
        UserError: the file `name` cannot be read or is not text; `error`, with `advice`.
    """
    try:
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        reason = getattr(cause, "strerror", None) or "not a text file"
        raise error(f"{name} {path} cannot be read ({reason}); {advice}") from None
