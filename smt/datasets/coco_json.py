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

ElementCallback = Callable[[Any, int, int], None]
"""Is given an element and the bytes of the file, from and to, that it stands in."""


class InvalidJson(Exception):
    """Not a JSON object; the message says why, and at which byte."""


def read(
    content: bytes | memoryview, array_key: str, on_element: ElementCallback
) -> dict[str, Any]:
    """Return a JSON object with None for the array of key `array_key`.

    `on_element` is called with each element of that array.

    Raises:
        InvalidJson: `content` is damaged or something else.
    """
    try:
        text = str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidJson(f"invalid UTF-8 at byte {error.start} of {len(content)}") from None
    if text.startswith("\ufeff"):
        raise InvalidJson("it begins with a byte order mark (BOM); save it as UTF-8 without one")
    return _Reader(text, len(content), array_key, on_element).object()


class _Reader:
    """The text and the place in it."""

    def __init__(self, text: str, size: int, array_key: str, on_element: ElementCallback) -> None:
        self._text, self._size, self._at = text, size, 0
        self._array_key, self._on_element = array_key, on_element
        # Characters of more than a byte, and by how much what follows each is further on.
        wide = [] if len(text) == size else list(_WIDE.finditer(text))
        self._wide = [match.end() for match in wide]
        self._further = [0, *accumulate(len(match[0].encode()) - 1 for match in wide)]

    def object(self) -> dict[str, Any]:
        members: dict[str, Any] = {}
        self._expect("{")
        if self._next() != "}":
            self._member(members)
            while self._next() == ",":
                self._at += 1
                self._member(members)
        self._expect("}")
        if self._next():
            self._fail("more than one value")
        return members

    def _member(self, members: dict[str, Any]) -> None:
        key = self._value()
        if not isinstance(key, str) or key in members:
            self._fail(f"{key!r} is not a key, or is given twice,")
        self._expect(":")
        if key == self._array_key:
            self._elements()
        members[key] = None if key == self._array_key else self._value()

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
        self._on_element(value, start, self._byte(self._at))

    def _value(self) -> Any:
        self._next()
        try:
            value, self._at = _DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            self._at = error.pos
            self._fail(error.msg)
        except RecursionError:
            self._fail("too deeply nested brackets")
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
