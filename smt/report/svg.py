"""Drawing for a page: axes, marks and text as SVG that a style sheet colours.

Text stays text, so that it can be read aloud, found and copied, and colours follow the page's.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

FONT = 12
"""Size of text, in the drawing's own units."""


@dataclass(frozen=True)
class Scale:
    """Takes values to places on one axis."""

    low: float
    high: float
    start: float
    """Where `low` is."""
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log(self.low), math.log(self.high), math.log(value))
            if self.logarithmic
            else (self.low, self.high, value)
        )
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Return about `count` round values inside."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        else:
            step = round_step((self.high - self.low) / count)
            first = math.ceil(self.low / step - 1e-9)
            values = [number * step for number in range(first, first + 4 * count)]
        span = 1e-9 * (self.high - self.low)
        return [each for each in values if self.low - span <= each <= self.high + span]


def round_step(rough: float) -> float:
    """Return 1, 2 or 5 times a power of ten, the next one that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough * (1 - 1e-9))


def padded(values: Iterable[float], share: float = 0.06) -> tuple[float, float]:
    """Return a range around all values that has some room to spare."""
    known = list(values)
    low, high = min(known), max(known)
    room = share * (high - low) or max(abs(high), 1.0) * share
    return low - room, high + room


@dataclass
class Drawing:
    """An SVG in the making."""

    width: float
    height: float
    title: str
    """What a screen reader says of all of it."""
    parts: list[Markup] = field(default_factory=list)

    def add(
        self, name: str, *children: Markup | str, hover: str = "", **attributes: object
    ) -> None:
        """Add an element; `hover` is shown where a mouse rests on it."""
        inner = [element("title", hover)] if hover else []
        self.parts.append(element(name, *inner, *children, **attributes))

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        self.add("text", text, x=x, y=y, class_=kind or None, text_anchor=anchor)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)

    def axes(self, x: Scale, y: Scale, x_label: str) -> None:
        """Add a grid with ticks at the left and below."""
        for value in y.ticks():
            self.line(x.start, y(value), x.end, y(value), "grid")
            self.text(x.start - 6, y(value) + FONT / 3, plain(value), "tick", "end")
        self.bottom(x, y.start, x_label)

    def bottom(self, x: Scale, at: float, label: str) -> None:
        """Add a horizontal axis."""
        self.line(x.start, at, x.end, at, "axis")
        for value in x.ticks(8):
            self.line(x(value), at, x(value), at + 4, "axis")
            self.text(x(value), at + 5 + FONT, plain(value), "tick", "middle")
        self.text((x.start + x.end) / 2, at + 10 + 2 * FONT, label, "label", "middle")

    def svg(self) -> Markup:
        """Return the whole."""
        return element(
            "svg",
            *self.parts,
            viewBox=f"0 0 {number(self.width)} {number(self.height)}",
            role="img",
            aria_label=self.title,
        )


def element(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """Return one element; text in it is escaped. `class_` is class, `text_anchor` text-anchor."""
    written = "".join(
        f' {_name(key)}="{escape(number(value) if isinstance(value, float) else value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(map(escape, children))
    return Markup(f"<{name}{written}>{inner}</{name}>" if inner else f"<{name}{written}/>")


def _name(key: str) -> str:
    return key if key == "viewBox" else key.rstrip("_").replace("_", "-")


def points(places: Sequence[tuple[float, float]]) -> str:
    """Return places as a polyline has them."""
    return " ".join(f"{number(x)},{number(y)}" for x, y in places)


def number(value: float) -> str:
    """Return a place to a tenth of a unit."""
    return f"{value:.1f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def plain(value: float) -> str:
    """Return a tick's value in as few digits as it has."""
    return f"{value:.6g}" if abs(value) > 1e-9 else "0"
