"""Names beside the markers of a plot, where they cover neither markers nor each other."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import cos, pi, sin
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_DISTANCES = (8, 14, 22, 32, 44, 58)
"""From a marker, in points, in the order in which they are tried."""
_ANGLES = (0, 12, 1, 11, 13, 23, 6, 18, 3, 9, 15, 21)
"""In 24ths of a turn: beside the marker first, then above and below."""
_SHARE_LEFT = {"left": 0.0, "center": 0.5, "right": 1.0}
"""Of a text's width, how much lies to the left of its place, by horizontal alignment."""
_MARKER = 5
"""Half of a marker's side, in points."""


def write_labels(
    figure: "Figure",
    axes: "Axes",
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    styles: Sequence[dict[str, Any]],
) -> None:
    """Write a text beside each point, joined to it by a line; the first points choose first.

    A text without a free place goes to the last one that was tried.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # places are in pixels, which the layout decides
    # By itself each text makes another renderer.
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    pixel = figure.dpi / 72
    taken = []
    for x, y in axes.transData.transform(points):
        side = _MARKER * pixel
        taken.append(Bbox.from_extents(x - side, y - side, x + side, y + side))
    for point, text, style in zip(points, texts, styles, strict=True):
        label = axes.annotate(
            text, point, xytext=(0, 0), textcoords="offset points", ha="left", va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "shrinkA": 1, "shrinkB": 4,
                        "color": style["color"]},
            **style,
        )  # fmt: skip
        label.set_in_layout(False)
        label.get_window_extent(renderer)  # moves it; the extent with the line is of no use here
        extent = Text.get_window_extent(label, renderer)
        for x, y, alignment in _places():
            right = x * pixel - _SHARE_LEFT[alignment] * extent.width
            box = extent.translated(right, y * pixel).padded(2 * pixel)
            if _is_inside(box, axes.bbox) and not any(box.overlaps(other) for other in taken):
                break
        label.set(position=(x, y), horizontalalignment=alignment)
        taken.append(box)


def _places() -> Iterator[tuple[float, float, Literal["left", "center", "right"]]]:
    """Yield offsets in points, and the side of the text that is there."""
    for distance, angle in product(_DISTANCES, _ANGLES):
        x, y = cos(pi * angle / 12), sin(pi * angle / 12)
        side: Literal["left", "right"] = "left" if x > 0 else "right"
        yield distance * x, distance * y, "center" if abs(x) < 0.1 else side


def _is_inside(box: "Bbox", frame: "Bbox") -> bool:
    return bool(
        frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    )
