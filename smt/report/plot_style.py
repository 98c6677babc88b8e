"""What all figures share: colours, style, and a figure with its texts for a page."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE: Mapping[str, tuple[str, str]] = {
    "page": ("#ffffff", "#14181d"),
    "card": ("#f6f7f9", "#1d232b"),
    "ink": ("#1c2530", "#e4e9ef"),
    "faint": ("#5b6673", "#9ba7b4"),
    "edge": ("#d9dee4", "#333c47"),
    "good": ("#00795a", "#4cc9a4"),
    "near": ("#0b6aa8", "#6bb8f0"),
    "bad": ("#b83a00", "#ff9560"),
    "s0": ("#0072b2", "#5aaef0"),
    "s1": ("#d55e00", "#ff8a4c"),
    "s2": ("#008c68", "#3fcf9f"),
    "s3": ("#b3598d", "#e79cc8"),
    "s4": ("#2a95cf", "#8fd0f5"),
    "s5": ("#b87a00", "#f0b840"),
}
"""Colours by their names in the page's style sheet: on white, and in dark mode. s0 to s5 are Okabe
and Ito's, which readers of every kind of colour vision can tell apart, darkened for white."""

_STYLE: Any = {
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "legend.labelcolor"), PALETTE["ink"][0]),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), PALETTE["faint"][0]),
    "grid.color": PALETTE["edge"][0],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 100,
}


@dataclass
class Plot:
    """A figure, with its legend and tooltips for a page."""

    name: str
    title: str
    figure: "Figure"
    lines: list[str] = field(default_factory=list)
    """Its legend as text, for screen readers."""
    hovers: dict["Artist", list[str]] = field(default_factory=dict)
    """Text of each mark of an artist, shown under a mouse."""
    empty: str = ""
    """Why there is nothing to show; empty where there is something."""

    def add_hover(self, artist: "Artist", texts: Iterable[str]) -> None:
        artist.set_gid(f"hover{len(self.hovers)}")
        self.hovers[artist] = list(texts)


@contextmanager
def style(name: str, **settings: Any) -> Iterator[None]:
    """Use this project's style while a figure is made or written."""
    import matplotlib

    # Element ids come from the content and from the name, so a page can hold several figures.
    settings = {**_STYLE, "svg.hashsalt": name, **settings}
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        yield


def new_plot(name: str, title: str, width: float, height: float) -> Plot:
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Plot(name, title, Figure(figsize=(width, height), layout="constrained"))


def hex_of(name: str) -> str:
    """Return a colour of the palette, on white."""
    return PALETTE[name][0]


def set_empty(plot: Plot, axes: Iterable["Axes"], text: str) -> None:
    """Write on empty axes why they are so."""
    plot.empty = text
    for ax in axes:
        ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes)
