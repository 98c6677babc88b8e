"""A JSON file with one very long array, read element by element: whole, it would take gigabytes."""

import json
import re
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NoReturn

_SPACE = re.compile(r"[ \t\n\r]*")
_WIDE = re.compile(r"[^\x00-\x7f]")
_DECODER = json.JSONDecoder()

Take = Callable[[Any, int, int], None]
"""Is given an element and the bytes of the file, from and to, that it stands in."""


class InvalidJson(Exception):
    """Not a JSON object; the message says why, and at which byte."""


def read(content: bytes | memoryview, long: str, take: Take) -> dict[str, Any]:
    """Return a JSON object with None for the array of key `long`, whose elements `take` is given.

    Raises:
        InvalidJson: `content` is damaged or something else.
    """
    try:
        text = str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidJson(f"no UTF-8 at byte {error.start} of {len(content)}") from None
    if text.startswith("\ufeff"):
        raise InvalidJson("a byte order mark (BOM) stands before it: save it as UTF-8 without one")
    return _Reader(text, len(content), long, take).object()


class _Reader:
    """The text and the place in it."""

    def __init__(self, text: str, size: int, long: str, take: Take) -> None:
        self._text, self._size, self._long, self._take, self._at = text, size, long, take, 0
        # Characters of more than a byte, and by how much what follows each is further on.
        wide = [] if len(text) == size else list(_WIDE.finditer(text))
        self._wide = [found.end() for found in wide]
        self._further = [0, *accumulate(len(found[0].encode()) - 1 for found in wide)]

    def object(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._expect("{")
        if self._next() != "}":
            self._member(found)
            while self._next() == ",":
                self._at += 1
                self._member(found)
        self._expect("}")
        if self._next():
            self._fail("more than one value")
        return found

    def _member(self, found: dict[str, Any]) -> None:
        key = self._value()
        if not isinstance(key, str) or key in found:
            self._fail(f"{key!r} is no key, or stands twice,")
        self._expect(":")
        if key == self._long:
            self._elements()
        found[key] = None if key == self._long else self._value()

    def _elements(self) -> None:
        self._expect("[")
        if self._next() != "]":
            self._element()
            while self._next() == ",":
                self._at += 1
                self._element()
        self._expect("]")

    def _element(self) -> None:
        self._next()
        start = self._byte(self._at)
        value = self._value()
        self._take(value, start, self._byte(self._at))

    def _value(self) -> Any:
        self._next()
        try:
            value, self._at = _DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            self._at = error.pos
            self._fail(error.msg)
        except RecursionError:
            self._fail("brackets within brackets without end")
        return value

    def _next(self) -> str:
        """Return the next character that is no space, or "" at the end."""
        space = _SPACE.match(self._text, self._at)
        assert space is not None
        self._at = space.end()
        return self._text[self._at : self._at + 1]

    def _expect(self, character: str) -> None:
        if self._next() != character:
            self._fail(f"{character!r} expected")
        self._at += 1

    def _byte(self, at: int) -> int:
        """Return the byte that a character stands at."""
        return at + self._further[bisect_right(self._wide, at)] if self._wide else at

    def _fail(self, what: str) -> NoReturn:
        raise InvalidJson(f"{what} at byte {self._byte(self._at)} of {self._size}")
