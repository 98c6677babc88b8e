"""The result of a check: one line, and what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class CheckResult:
    """An `error` keeps trainings from running as asked; a `warning` costs time or safety."""

    level: Level
    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<8} {self.subject:<12} {self.text}"
        return f"{line}; {self.remedy}" if self.remedy else line


CheckResults: TypeAlias = Iterator[CheckResult]


def ok(subject: str, text: str) -> CheckResult:
    """Return that all is well."""
    return CheckResult("ok", subject, text)


def warning(subject: str, text: str, remedy: str) -> CheckResult:
    """Return what costs time or safety."""
    return CheckResult("warning", subject, text, remedy)


def error(subject: str, text: str, remedy: str) -> CheckResult:
    """Return what keeps trainings from running as asked."""
    return CheckResult("error", subject, text, remedy)
