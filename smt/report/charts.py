"""The figures of the report, as SVG for a page. `smt.report.drawing` puts them on paper."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from smt.config.metrics import METRICS
from smt.report.agreement import Agreement, reach
from smt.report.figures import Band, Curve, Marker, metric_of
from smt.report.svg import FONT, Drawing, Scale, element, padded, points
from smt.report.tables import signed

COLOURS = 7
"""Colours of lines that the style sheet knows, as s0, s1, ..."""
DASHES = (None, "7 3", "2 2.5", "8 3 2 3")
HOVERED = 40
"""Points of a line that answer to a mouse, at most."""
DOTTED = 12
"""Points up to which each of them is drawn as well."""

GROUPS = {"pretrain": "s0", "finetune": "s2", "ablation": "s1"}


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    swatch: Markup
    label: str
    note: str


@dataclass(frozen=True)
class Chart:
    """A figure of the page."""

    title: str
    panels: tuple[tuple[str, Markup], ...]
    """Heading and drawing of each part; none where there is nothing to show."""
    keys: tuple[Key, ...] = ()
    nothing: str = ""
    """What is said in place of the panels."""
    wide: bool = False
    """Whether it is to be scrolled where the page is narrow."""


# --- learning curves -------------------------------------------------------------------------


def learning_curves(title: str, curves: Sequence[Curve]) -> Chart:
    """Return training loss and validation scores over epochs, a line each experiment."""
    every = [
        (number, each) for number, curve in enumerate(curves) for each in (curve, *curve.apart)
    ]
    losses = [(number, each.label, each.loss) for number, each in every]
    scores = [(number, each.label, each.score) for number, each in every]
    metric = metric_of(curves)
    panels = [
        _panel(f"{title}: {name}", name, bands, decimals)
        for name, decimals, bands in (
            ("training loss", 3, losses),
            (f"validation {metric.name} (%)", metric.decimals, scores),
        )
    ]
    return Chart(
        title,
        tuple(panel for panel in panels if panel is not None),
        tuple(_curve_key(index, curve) for index, curve in enumerate(curves)),
        nothing="No run has begun.",
    )


def _style(index: int) -> tuple[str, str | None]:
    """Return class and dashes of a line."""
    return f"s{index % COLOURS}", DASHES[index % len(DASHES)]


def _curve_key(index: int, curve: Curve) -> Key:
    colour, dash = _style(index)
    line = element("line", x1=0, y1=5, x2=26, y2=5, class_=f"curve {colour}", stroke_dasharray=dash)
    swatch = element("svg", line, viewBox="0 0 26 10", class_="swatch", aria_hidden="true")
    seeds = {0: "pending", 1: "1 seed"}.get(curve.seeds, f"{curve.seeds} seeds, ± 1 std")
    last = [f", {METRICS[curve.metric].format(score)}" for score in curve.score.mean[-1:]]
    apart = f"; {len(curve.apart)} not done, thin" if curve.apart else ""
    return Key(swatch, curve.label, "".join((seeds, *last, apart)))


def _panel(
    title: str, name: str, bands: Sequence[tuple[int, str, Band]], decimals: int
) -> tuple[str, Markup] | None:
    shown = [each for each in bands if each[2].epochs]
    if not shown:
        return None
    drawing = Drawing(440, 270, title)
    last = max(band.epochs[-1] for _, _, band in shown)
    first = min(band.epochs[0] for _, _, band in shown)
    heights = [
        mean + sign * std
        for _, _, band in shown
        for mean, std in zip(band.mean, band.std, strict=True)
        for sign in (-1, 1)
    ]
    x = Scale(*((first, last) if last > first else (first - 1, first + 1)), 46, 428)
    y = Scale(*padded(heights), 226, 10)
    drawing.axes(x, y, "epoch")
    for index, _label, band in shown:
        _spread(drawing, x, y, index, band)
    seen: set[int] = set()
    for index, label, band in shown:
        thin = index in seen  # a seed that is not done, after the mean of those that are
        seen.add(index)
        _line(drawing, x, y, index, label, band, thin)
        _hovers(drawing, x, y, index, f"{label}, {name}", band, decimals)
    return name, drawing.svg()


def _spread(drawing: Drawing, x: Scale, y: Scale, index: int, band: Band) -> None:
    if any(band.std):
        every = list(zip(band.epochs, band.mean, band.std, strict=True))
        above = [(x(epoch), y(mean + std)) for epoch, mean, std in every]
        below = [(x(epoch), y(mean - std)) for epoch, mean, std in reversed(every)]
        drawing.add("polygon", points=points(above + below), class_=f"spread {_style(index)[0]}")


def _line(
    drawing: Drawing, x: Scale, y: Scale, index: int, label: str, band: Band, thin: bool
) -> None:
    colour, dash = _style(index)
    places = [(x(epoch), y(mean)) for epoch, mean in zip(band.epochs, band.mean, strict=True)]
    drawing.add(
        "polyline",
        hover=label,
        points=points(places),
        class_=f"curve {colour}{' thin' if thin else ''}",
        stroke_dasharray=dash,
    )


def _hovers(
    drawing: Drawing, x: Scale, y: Scale, index: int, label: str, band: Band, decimals: int
) -> None:
    """Add points that say their values where a mouse rests on them."""
    every = list(zip(band.epochs, band.mean, band.std, strict=True))
    stride = -(-len(every) // HOVERED)
    for epoch, mean, std in [*every[:-1:stride], every[-1]]:
        if len(every) <= DOTTED:
            drawing.add("circle", cx=x(epoch), cy=y(mean), r=2.2, class_=f"dot {_style(index)[0]}")
        spread = f" ± {std:.{decimals}f}" if std else ""
        hover = f"{label} at epoch {epoch:g}: {mean:.{decimals}f}{spread}"
        drawing.add("circle", hover=hover, cx=x(epoch), cy=y(mean), r=7, class_="hover")


# --- accuracy against MACs -------------------------------------------------------------------


def accuracy(title: str, markers: Sequence[Marker], nothing: str) -> Chart:
    """Return accuracy against multiply-accumulates, a numbered disc each experiment."""
    if not markers:
        return Chart(title, (), nothing=nothing)
    drawing = Drawing(720, 400, title)
    unit, factor = ("G", 1.0) if max(each.gmacs for each in markers) >= 1 else ("M", 1e3)
    macs = [factor * each.gmacs for each in markers]
    heights = [each.top1 + sign * each.std for each in markers for sign in (-1, 1)]
    heights += [each.reported for each in markers if each.reported is not None]
    logarithmic = max(macs) > 5 * min(macs)
    reach = (min(macs) / 1.15, max(macs) * 1.15) if logarithmic else padded(macs)
    x, y = Scale(*reach, 52, 704, logarithmic), Scale(*padded(heights, 0.1), 350, 12)
    drawing.axes(x, y, f"multiply-accumulates of one image ({unit}), as published figures count")
    for index, (marker, place) in enumerate(zip(markers, macs, strict=True), start=1):
        _disc(drawing, x(place), y, index, marker, f"{place:.3g} {unit}MACs")
    keys = tuple(_marker_key(index, each) for index, each in enumerate(markers, start=1))
    return Chart(title, (("validation top-1 (%)", drawing.svg()),), keys, wide=True)


def _disc(drawing: Drawing, x: float, y: Scale, index: int, marker: Marker, macs: str) -> None:
    colour = GROUPS[marker.group]
    if marker.std:
        _whisker(drawing, x, y(marker.top1 - marker.std), y(marker.top1 + marker.std), colour)
    if marker.reported is not None:
        at = y(marker.reported)
        cross = f"M{x - 5:.1f} {at - 5:.1f}l10 10m0 -10l-10 10"
        hover = f"{marker.label}: reported {marker.reported}"
        drawing.add("path", hover=hover, d=cross, class_=f"curve {colour}")
    hover = f"{marker.label}: top-1 {_value(marker)}, {macs}"
    drawing.add("circle", hover=hover, cx=x, cy=y(marker.top1), r=9, class_=f"disc {colour}")
    drawing.text(x, y(marker.top1) + 3.5, str(index), "number", "middle")


def _whisker(drawing: Drawing, x: float, low: float, high: float, colour: str) -> None:
    path = f"M{x - 6:.1f} {low:.1f}h12m-6 0V{high:.1f}m-6 0h12"
    drawing.add("path", d=path, class_=f"whisker {colour}")


def _value(marker: Marker) -> str:
    return f"{marker.top1:.2f}" + (f" ± {marker.std:.2f}" if marker.std else "")


def _marker_key(index: int, marker: Marker) -> Key:
    disc = element("circle", cx=9, cy=9, r=9, class_=f"disc {GROUPS[marker.group]}")
    figure = element("text", str(index), x=9, y=12.5, class_="number", text_anchor="middle")
    swatch = element("svg", disc, figure, viewBox="0 0 18 18", class_="disc", aria_hidden="true")
    reported = f", reported {marker.reported}" if marker.reported is not None else ""
    return Key(swatch, marker.label, _value(marker) + reported)


# --- reported against reproduced -------------------------------------------------------------

_ROW, _TOP, _WIDTH = 26, 8, 420
"""Height of a row and of what is above it, and width of the middle."""
_SAID = 260
"""Room at the right, for numbers and verdicts."""
_LETTER = 7.2
"""Room for a letter of a label."""


def agreement(title: str, rows: Sequence[Agreement]) -> Chart:
    """Return the distance of each reproduced number from the reported one.

    With the tolerance as a band and the prediction interval as a whisker, dashed where it rests on
    other experiments alone.
    """
    if not rows:
        return Chart(title, (), nothing="No number is reported of any row.")
    bottom = _TOP + _ROW * len(rows)
    left = 10 + _LETTER * max(len(each.label) for each in rows)
    x = Scale(*padded(reach(rows), 0.08), left, left + _WIDTH)
    drawing = Drawing(x.end + _SAID, bottom + 46, title)
    drawing.line(x(0), _TOP, x(0), bottom, "zero")
    for index, row in enumerate(rows):
        _agreement_row(drawing, x, _TOP + _ROW * (index + 0.5), row)
    drawing.bottom(x, bottom, "reproduced less reported, in points")
    return Chart(title, (("", drawing.svg()),), wide=True)


def _agreement_row(drawing: Drawing, x: Scale, y: float, row: Agreement) -> None:
    colour = f"v-{row.kind}"
    drawing.line(x.start, y, x.end, y, "grid")
    drawing.add(
        "rect",
        hover=f"{row.label}: reported {row.reported} ± {row.tolerance:g}",
        x=x(-row.tolerance),
        y=y - 8,
        width=x(row.tolerance) - x(-row.tolerance),
        height=16.0,
        class_="band",
    )
    drawing.text(x.start - 10, y + FONT / 3, row.label, "row", "end")
    drawing.text(x.end + 14, y + FONT / 3, row.said, f"row {colour}")
    if row.delta is None:
        return
    hover = f"{row.label}: {row.said}, {signed(row.delta, 2)}"
    if row.interval:
        low = max(x(row.delta - row.interval), x.start)
        high = min(x(row.delta + row.interval), x.end)
        path = f"M{low:.1f} {y - 4:.1f}v8m0 -4H{high:.1f}m0 -4v8"
        dash = "4 3" if row.is_of_others else None
        drawing.add("path", d=path, class_=f"whisker {colour}", stroke_dasharray=dash)
        hover += f", 95 % interval ± {row.interval:.2f}"
    drawing.add("circle", hover=hover, cx=x(row.delta), cy=y, r=5.5, class_=f"point {colour}")
