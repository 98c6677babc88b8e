"""The figures, plotted with matplotlib, for files as well as for the report.

The same numbers give the same bytes. Matplotlib is imported where a figure is made: it takes half a
second.
"""

from collections.abc import Sequence
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smt.config.metrics import METRICS
from smt.report import figures
from smt.report.agreement import Agreement, agreements, axis_range
from smt.report.collect import Results
from smt.report.cost_labels import write_labels
from smt.report.figures import Band, Curve, Marker, PublishedModel, metric_of
from smt.report.format import plus_minus, signed
from smt.report.plot_style import Plot, hex_of, new_plot, set_empty, style
from smt.runs.atomic import RESULTS_REMEDY, explained, replacing
from smt.runs.paths import Layout
from smt.runs.state import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = ("s0", "s1", "s2", "s3", "s4", "s5", "ink")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
VERDICTS = {
    "reproduced": "good", "within-noise": "near", "above": "s3", "below": "bad", "failed": "bad",
}  # fmt: skip
"""Colours of verdicts; others are faint."""
GROUPS = {
    "pretrain": ("s0", "o", "from scratch"),
    "finetune": ("s2", "s", "fine-tuned"),
    "ablation": ("s1", "D", "ablation of SMT-T"),
}
"""Colour, marker and title of each group of classifiers."""
HOVERS = 40
"""Points of a line that show their values under a mouse, at most."""


def plot(results: Results, name: str) -> Plot:
    """Return the figure `name`.

    Raises:
        UserError: MLflow does not answer.
    """
    title, scale = figures.titles(results.project)[name], results.project.scale_name
    with style(name):
        if name == figures.ACCURACY:
            return accuracy(title, figures.markers(results), scale)
        if name == figures.AGREEMENT:
            return agreement(title, agreements(results))
        if figures.is_cost(name):
            models = figures.published_models(results, name)
            return cost(name, title, models, figures.cost_heading(results.project, name))
        return learning_curves(name, title, figures.curves(results, name))


def save_all(results: Results, layout: Layout, names: Sequence[str] = ()) -> list[Path]:
    """Write the named figures, or all, as SVG and PNG and return the files made.

    Raises:
        UserError: MLflow does not answer, or the folder cannot be written.
    """
    notice = results.project.scale.notice
    return [
        path
        for name in names or figures.titles(results.project)
        for path in _save(plot(results, name), layout.figures / name, notice)
    ]


def _save(plot: Plot, stem: Path, notice: str | None) -> list[Path]:
    """Write both formats, without dates and versions."""
    for artist in plot.hovers:
        artist.set_visible(artist.get_alpha() != 0)
    metadata: dict[str, dict[str, Any]] = {
        "svg": {"Date": None, "Title": plot.title},
        "png": {"Software": None},
    }
    paths = []
    with style(plot.name):
        plot.figure.suptitle(f"{plot.title}\n{notice}" if notice else plot.title, fontsize=12)
        for suffix, facts in metadata.items():
            path = stem.with_name(f"{stem.name}.{suffix}")
            with explained(path, RESULTS_REMEDY), replacing(path) as file:
                plot.figure.savefig(file, format=suffix, metadata=facts, dpi=150)
            paths.append(path)
    return paths


# --- learning curves -------------------------------------------------------------------------


def learning_curves(name: str, title: str, curves: Sequence[Curve]) -> Plot:
    """Plot training loss and validation scores over epochs, a line each experiment."""
    rows = ceil(len(curves) / 2)
    plot = new_plot(name, title, 10, 4.3 + 0.2 * rows)
    loss, score = plot.figure.subplots(1, 2)
    metric = metric_of(curves)
    for index, curve in enumerate(curves):
        style = {
            "color": hex_of(LINES[index % len(LINES)]), "linestyle": DASHES[index % len(DASHES)],
        }  # fmt: skip
        plot.lines.append(_curve_label(curve))
        loss.plot([], [], label=plot.lines[-1], **style)
        for line, width in ((curve, 1.7), *((seed, 0.8) for seed in curve.apart)):
            lines = {**style, "linewidth": width}
            _line(plot, loss, f"{line.label}, training loss", line.loss, 3, lines)
            heading = f"{line.label}, validation {metric.name} (%)"
            _line(plot, score, heading, line.score, metric.decimals, lines)
    for axes in (loss, score):
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss.set(xlabel="epoch", ylabel="training loss (mean of the epoch)")
    score.set(xlabel="epoch", ylabel=f"validation {metric.name} (%)")
    if not any(curve.loss.epochs or curve.score.epochs for curve in curves):
        set_empty(plot, (loss, score), "No run has begun.")
    handles, labels = loss.get_legend_handles_labels()
    plot.figure.legend(
        handles, labels, loc="outside lower center", ncols=2, fontsize=9,
        title="band: ± 1 standard deviation over seeds; thin line: a seed that is not done",
        title_fontsize=8,
    )  # fmt: skip
    return plot


def _curve_label(curve: Curve) -> str:
    if curve.seeds == 0:
        return f"{curve.label}: {State.NOT_STARTED}"
    seeds = f"{curve.seeds} seed{'s' if curve.seeds > 1 else ''}"
    last = [METRICS[curve.metric].format(score) for score in curve.score.mean[-1:]]
    return f"{curve.label}: {', '.join((*last, seeds))}"


def _line(
    plot: Plot, axes: "Axes", label: str, band: Band, decimals: int, style: dict[str, Any]
) -> None:
    if not band.epochs:
        return
    values = list(zip(band.epochs, band.mean, band.std, strict=True))
    few = len(values) <= 12
    axes.plot(band.epochs, band.mean, marker="o" if few else None, markersize=3, **style)
    if any(band.std):
        low = [mean - std for _, mean, std in values]
        high = [mean + std for _, mean, std in values]
        axes.fill_between(band.epochs, low, high, color=style["color"], alpha=0.18, linewidth=0)
    # Matplotlib leaves out a mark that is not finite; it would shift the texts of the others.
    points = [value for value in values if isfinite(value[1])]
    stride = ceil(len(points) / HOVERS) or 1
    points = [*points[:-1:stride], *points[-1:]]
    (marks,) = axes.plot(
        [epoch for epoch, _, _ in points], [mean for _, mean, _ in points], "o", alpha=0.0,
        markersize=10,
    )  # fmt: skip
    plot.add_hover(
        marks,
        (
            f"{label} at epoch {epoch:g}: {plus_minus(mean, std or None, decimals)}"
            for epoch, mean, std in points
        ),
    )


# --- accuracy against MACs -------------------------------------------------------------------


def accuracy(title: str, markers: Sequence[Marker], scale: str) -> Plot:
    """Plot top-1 against multiply-accumulates, a numbered marker each experiment."""
    plot = new_plot(figures.ACCURACY, title, 10, 6.5)
    axes = plot.figure.subplots()
    if not markers:
        axes.set_axis_off()
        command = f"smt profile --scale {scale} measures models."
        set_empty(plot, (axes,), f"No run is done and measured yet: {command}")
        return plot
    unit, factor = ("G", 1.0) if max(marker.gmacs for marker in markers) >= 1 else ("M", 1e3)
    for number, marker in enumerate(markers, start=1):
        _numbered(plot, axes, number, marker, factor * marker.gmacs, unit)
    low, high = (pick(marker.gmacs for marker in markers) for pick in (min, max))
    if high > 5 * low:
        _logarithmic(axes)
    axes.set(
        xlabel=f"multiply-accumulates of one image ({unit}, counted as the published figures are)",
        ylabel="validation top-1 (%)",
    )
    plot.figure.legend(
        loc="outside lower center", ncols=2, fontsize=8, title=_groups(markers), title_fontsize=8
    )
    return plot


def _groups(markers: Sequence[Marker]) -> str:
    names = {"o": "circle", "s": "square", "D": "diamond"}
    groups = (GROUPS[group] for group in GROUPS if any(marker.group == group for marker in markers))
    parts = [f"{names[marker]}: {title}" for _, marker, title in groups]
    if any(marker.reported is not None for marker in markers):
        parts.append("x: reported")
    return "; ".join(parts)


def _numbered(
    plot: Plot, axes: "Axes", number: int, marker: Marker, macs: float, unit: str
) -> None:
    """Plot one experiment as a marker with its number, which the legend explains."""
    colour, shape, _ = GROUPS[marker.group]
    value = plus_minus(marker.top1, marker.std or None, 2)
    label = f"{number}  {marker.label}: {value}"
    if marker.reported is not None:
        label += f", reported {marker.reported}"
        axes.plot(macs, marker.reported, "x", color=hex_of(colour), markersize=7)
    plot.lines.append(label)
    axes.errorbar(macs, marker.top1, yerr=marker.std or None, color=hex_of(colour), capsize=6)
    (point,) = axes.plot(macs, marker.top1, shape, color=hex_of(colour), markersize=13)
    plot.add_hover(point, [f"{marker.label}: top-1 {value}, {macs:.3g} {unit}MACs"])
    axes.plot([], [], shape, color=hex_of(colour), label=label)
    axes.text(
        macs, marker.top1, str(number), color=hex_of("page"), fontsize=7.5, fontweight="bold",
        ha="center", va="center_baseline",
    )  # fmt: skip


def _logarithmic(axes: "Axes") -> None:
    """Set out the x axis by logarithms, once everything is plotted."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullFormatter, StrMethodFormatter

    low, high = axes.dataLim.intervalx
    axes.set_xscale("log")
    # Of 1, 2 and 5 times powers of ten there are too few in less than a decade.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else AutoLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


# --- models of others -------------------------------------------------------------------------


def cost(name: str, title: str, models: Sequence[PublishedModel], heading: str) -> Plot:
    """Plot what was published of models against their MACs.

    A marker is full where the MACs were counted here, and empty where they are published ones.
    """
    plot = new_plot(name, title, 10, 7)
    axes = plot.figure.subplots()
    for model in models:
        colour, shape = hex_of("s1" if model.is_smt else "s0"), "D" if model.is_smt else "o"
        face = colour if model.is_measured else hex_of("page")
        (point,) = axes.plot(
            model.gmacs, model.score, shape, color=colour, markerfacecolor=face, markersize=6
        )
        counted = "counted here" if model.is_measured else "published"
        plot.lines.append(f"{model.label}: {model.score:g}, {model.gmacs:.3g} GMACs {counted}")
        plot.add_hover(point, plot.lines[-1:])
    axes.set(xlabel="multiply-accumulates of one image (G)", ylabel=f"published {heading}")
    _logarithmic(axes)
    axes.margins(0.08)
    _key_of_cost(axes)
    smt_first = sorted(models, key=lambda model: not model.is_smt)
    write_labels(
        plot.figure, axes,
        [(model.gmacs, model.score) for model in smt_first],
        [model.label for model in smt_first],
        [
            {"color": hex_of("s1"), "fontsize": 8.5, "fontweight": "bold"} if model.is_smt
            else {"color": hex_of("ink"), "fontsize": 7.5}
            for model in smt_first
        ],
    )  # fmt: skip
    return plot


def _key_of_cost(axes: "Axes") -> None:
    page = hex_of("page")
    for shape, colour, face, text in (
        ("D", "s1", hex_of("s1"), "SMT"),
        ("o", "s0", hex_of("s0"), "others"),
        ("o", "faint", hex_of("faint"), "full: MACs counted here, as those of SMT"),
        ("o", "faint", page, "empty: MACs as published"),
    ):
        axes.plot(
            [], [], shape, color=hex_of(colour), markerfacecolor=face, markersize=6, label=text
        )
    axes.legend(loc="lower right", fontsize=8)


# --- reported against reproduced -------------------------------------------------------------


def agreement(title: str, rows: Sequence[Agreement]) -> Plot:
    """Plot each published number at 0 with its tolerance, and the reproduced one beside it.

    With the prediction interval as a whisker, dashed where it rests on other experiments alone.
    """
    plot = new_plot(figures.AGREEMENT, title, 11, 1.5 + 0.3 * max(len(rows), 4))
    axes = plot.figure.subplots()
    low, high = axis_range(rows) if rows else (-1.0, 1.0)
    for place, row in enumerate(rows):
        _agreement_row(plot, axes, row, place, (low, high))
    axes.axvline(0, color=hex_of("faint"), linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.tick_params(axis="y", labelcolor=hex_of("ink"))
    axes.set(
        xlabel="reproduced less reported, in points", ylim=(max(len(rows), 1) - 0.5, -0.5),
        xlim=(low, high),
    )  # fmt: skip
    if not rows:
        set_empty(plot, (axes,), "No number is reported of any row.")
    elif all(row.delta is None for row in rows):
        axes.set_title("No run is done yet.", fontsize=10)
    plot.figure.supxlabel(
        "band: tolerance; whisker: 95 % prediction interval, dashed where it rests on other "
        "experiments alone",
        fontsize=8,
    )
    return plot


def _agreement_row(
    plot: Plot, axes: "Axes", row: Agreement, place: int, limits: tuple[float, float]
) -> None:
    tolerance, colour = row.tolerance, hex_of(VERDICTS.get(row.kind, "faint"))
    (band,) = axes.barh(
        place, 2 * tolerance, left=-tolerance, height=0.6, color=hex_of("good"), alpha=0.2
    )
    plot.add_hover(band, [f"{row.label}: reported {row.reported} ± {tolerance:g}"])
    beside = axes.get_yaxis_transform()  # x as a fraction of the width, y in rows
    axes.text(1.02, place, row.text, transform=beside, va="center", fontsize=9, color=colour)
    plot.lines.append(f"{row.label}: {row.text}")
    if row.delta is None:
        return
    hover = f"{row.label}: {row.text}, {signed(row.delta, 2)}"
    if row.interval:
        hover += f", 95 % interval ± {row.interval:.2f}"
        ends = [max(row.delta - row.interval, limits[0]), min(row.delta + row.interval, limits[1])]
        dash = (0, (4, 3)) if row.is_of_others else "-"
        axes.plot(ends, [place, place], color=colour, linestyle=dash, linewidth=1.5)
        axes.plot(ends, [place, place], "|", color=colour, markersize=7)
    (point,) = axes.plot(row.delta, place, "o", color=colour, markersize=7)
    plot.add_hover(point, [hover])
