"""What a check found: one line, and what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """An `error` keeps trainings from running as asked; a `warning` costs time or safety."""

    level: Level
    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<8} {self.subject:<12} {self.text}"
        return f"{line}; {self.remedy}" if self.remedy else line


Findings: TypeAlias = Iterator[Finding]


def ok(subject: str, text: str) -> Finding:
    """Return that all is well."""
    return Finding("ok", subject, text)


def warning(subject: str, text: str, remedy: str) -> Finding:
    """Return what costs time or safety."""
    return Finding("warning", subject, text, remedy)


def error(subject: str, text: str, remedy: str) -> Finding:
    """Return what keeps trainings from running as asked."""
    return Finding("error", subject, text, remedy)
