"""Figures on paper: SVG and PNG, the same bytes from the same numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smt.report import figures
from smt.report.agreement import Agreement, agreements, reach
from smt.report.collect import Results
from smt.report.figures import Band, Curve, Marker, metric_of
from smt.report.render import REMEDY
from smt.runs.atomic import explained, replacing
from smt.runs.paths import Layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette, which readers of every kind of colour vision can tell apart; its yellow
is left out, too pale for lines on white."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
VERDICTS = {
    "reproduced": COLOURS[2],
    "within-noise": COLOURS[0],
    "above": COLOURS[3],
    "below": COLOURS[1],
}
"""Colours of verdicts; others are grey."""
GROUPS = {"pretrain": COLOURS[0], "finetune": COLOURS[2], "ablation": COLOURS[1]}

_STYLE: Any = {
    "svg.hashsalt": "smt",  # element ids by content, not by chance
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.dpi": 100,
}


def draw(results: Results, layout: Layout, names: Sequence[str] = ()) -> list[Path]:
    """Draw the named figures, or all, and return the files made.

    Raises:
        UserError: MLflow does not answer, or the folder cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    titles = figures.titles(results.project)
    paths = []
    with matplotlib.rc_context(_STYLE):
        for name in names or titles:
            paths += _save(_drawn(results, layout, name, titles[name]), layout.figures / name)
    return paths


def _drawn(results: Results, layout: Layout, name: str, title: str) -> "Figure":
    notice = results.project.scale.notice
    if name == figures.ACCURACY:
        markers = figures.markers(results, layout)
        return _accuracy(markers, title, notice, results.project.scale_name)
    if name == figures.AGREEMENT:
        return _agreement(agreements(results), title, notice)
    return _learning_curves(figures.curves(results, name), title, notice)


def _save(figure: "Figure", stem: Path) -> list[Path]:
    """Write both formats, without dates and versions."""
    metadata: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {"Software": None}}
    paths = []
    for suffix, facts in metadata.items():
        path = stem.with_name(f"{stem.name}.{suffix}")
        with explained(path, REMEDY), replacing(path) as file:
            figure.savefig(file, format=suffix, metadata=facts, dpi=150)
        paths.append(path)
    return paths


def _canvas(width: float, height: float, title: str, notice: str | None) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(f"{title}\n{notice}" if notice else title, fontsize=12)
    return figure


def _learning_curves(curves: Sequence[Curve], title: str, notice: str | None) -> "Figure":
    figure = _canvas(10, 4.4 + 0.11 * len(curves), title, notice)
    loss, score = figure.subplots(1, 2)
    for index, curve in enumerate(curves):
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": DASHES[index % len(DASHES)],
            "label": curve.label + _seeds(curve.seeds),
        }
        _line(loss, curve.loss, style)
        _line(score, curve.score, style)
        for seed in curve.apart:
            thin = {**style, "label": f"_{seed.label}", "linewidth": 0.8}  # no entry of its own
            _line(loss, seed.loss, thin)
            _line(score, seed.score, thin)
    loss.set(xlabel="epoch", ylabel="training loss (mean of the epoch)")
    score.set(xlabel="epoch", ylabel=f"validation {metric_of(curves).name} (%)")
    for axes in (loss, score):
        _say_if_empty(axes, "no run has begun")
    handles, labels = loss.get_legend_handles_labels()
    columns = 2 if len(labels) > 3 else len(labels) or 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)
    return figure


def _seeds(count: int) -> str:
    return {0: " (pending)", 1: ""}.get(count, f" ({count} seeds, ± 1 std)")


def _line(axes: "Axes", band: Band, style: dict[str, Any]) -> None:
    # A point for itself would not show as a line.
    marker = "o" if len(band.epochs) == 1 else None
    axes.plot(band.epochs, band.mean, marker=marker, markersize=4, **{"linewidth": 1.6, **style})
    if any(band.std):
        low = [mean - std for mean, std in zip(band.mean, band.std, strict=True)]
        high = [mean + std for mean, std in zip(band.mean, band.std, strict=True)]
        axes.fill_between(band.epochs, low, high, color=style["color"], alpha=0.18, linewidth=0)


def _say_if_empty(axes: "Axes", text: str) -> None:
    if not any(len(line.get_xydata()) for line in axes.lines):  # type: ignore[arg-type]
        _say(axes, text)


def _say(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)


def _accuracy(markers: Sequence[Marker], title: str, notice: str | None, scale: str) -> "Figure":
    figure = _canvas(10, 6.5, title, notice)
    axes = figure.subplots()
    if not markers:
        axes.set_axis_off()
        _say(axes, f"no run is done and measured yet (smt profile --scale {scale})")
        return figure
    unit, macs = ("G", 1.0) if max(each.gmacs for each in markers) >= 1 else ("M", 1e3)
    for number, marker in enumerate(markers, start=1):
        _numbered(axes, number, marker, marker.gmacs * macs)
    low, high = (pick(each.gmacs for each in markers) for pick in (min, max))
    if high > 5 * low:
        _logarithmic(axes)
    axes.set(
        xlabel=f"multiply-accumulates of one image ({unit}, counted as the published figures are)",
        ylabel="validation top-1 (%)",
    )
    key = "blue: from scratch, green: fine-tuned, orange: ablations of SMT-T"
    crossed = any(marker.reported is not None for marker in markers)
    key += "; x: reported" if crossed else ""
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, title=key, title_fontsize=8)
    return figure


def _numbered(axes: "Axes", number: int, marker: Marker, macs: float) -> None:
    """Draw one experiment as a disc with its number, which the legend explains."""
    colour = GROUPS[marker.group]
    spread = f" ± {marker.std:.2f}" if marker.std else ""
    axes.errorbar(macs, marker.top1, yerr=marker.std or None, color=colour, capsize=6)
    axes.plot(macs, marker.top1, "o", color=colour, markersize=13)
    axes.plot(macs, marker.top1, marker=f"${number}$", color="white", markersize=7, linewidth=0)
    axes.plot(
        [],
        [],
        marker=f"${number}$",
        color=colour,
        linewidth=0,
        label=f"{marker.label}: {marker.top1:.2f}{spread}",
    )
    if marker.reported is not None:
        axes.plot(macs, marker.reported, "x", color=colour, markersize=7)


def _logarithmic(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _agreement(rows: Sequence[Agreement], title: str, notice: str | None) -> "Figure":
    """Draw each published number at 0 with its tolerance, and what came out beside it."""
    figure = _canvas(11, 1.5 + 0.3 * max(len(rows), 4), title, notice)
    axes = figure.subplots()
    beside = axes.get_yaxis_transform()  # across in parts of the width, down in rows
    for place, row in enumerate(rows):
        axes.barh(
            place, 2 * row.tolerance, left=-row.tolerance, height=0.6, color=COLOURS[2], alpha=0.2
        )
        colour = VERDICTS.get(row.kind, "#666666")
        if row.delta is not None:
            _point(axes, row, row.delta, place, colour)
        axes.text(1.02, place, row.said, transform=beside, va="center", fontsize=9, color=colour)
    axes.axvline(0, color="#666666", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set(xlabel="reproduced less reported, in points", ylim=(len(rows) - 0.5, -0.5))
    low, high = reach(rows) if rows else (-1.0, 1.0)
    axes.set_xlim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    if all(row.delta is None for row in rows):
        axes.set_title("no run is done yet", fontsize=10)
    figure.supxlabel(
        "band: tolerance; whisker: 95 % prediction interval, dashed where it rests on other "
        "experiments alone",
        fontsize=8,
    )
    return figure


def _point(axes: "Axes", row: Agreement, delta: float, place: int, colour: str) -> None:
    bar = axes.errorbar(delta, place, xerr=row.interval or None, fmt="o", color=colour, capsize=3)
    if row.interval and row.is_of_others:
        bar[2][0].set_linestyle("--")
