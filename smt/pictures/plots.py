"""The pictures themselves, plotted with matplotlib in this project's style."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from smt.models.smt import STRIDES
from smt.pictures.class_activation import ClassActivation
from smt.pictures.inputs import SHOWN, Inputs
from smt.pictures.receptive_field import ReceptiveField
from smt.report.plot_style import PALETTE, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLOURS = "viridis"
"""Colour map: its lightness rises evenly, so that it reads in grey and with any colour vision."""
OVERLAY = "inferno"
"""Colour map over an image."""
SHARES = {0.5: "-", 0.95: (0, (4, 2))}
"""Shares of the gradient whose squares are outlined, and how."""
FAINTEST = 1e-4
"""Part of the largest gradient that colours begin at."""
_TILE, _BAR = 2.2, 0.75
"""Inches of a panel's side, and of the colour scales below."""
_LONGEST_NAME = 22


def modulator_figure(title: str, inputs: Inputs, maps: dict[int, Tensor]) -> "Figure":
    """Return a row for each image, and a column with a scale of its own for each stage."""
    labels = [f"stage {stage}, stride {STRIDES[stage - 1]}" for stage in maps]
    return _grid(title, inputs, labels, list(maps.values()), "mean |modulator|", shared=False)


def heads_figure(title: str, inputs: Inputs, heads: Sequence[Tensor]) -> "Figure":
    """Return a row for each image, and a column for each head of MHMC, on one scale."""
    kernels = [3 + 2 * head for head in range(len(heads))]
    labels = [f"head {n}, {kernel} × {kernel}" for n, kernel in enumerate(kernels, start=1)]
    return _grid(title, inputs, labels, heads, "mean |output|", shared=True)


def activation_figure(title: str, inputs: Inputs, found: ClassActivation) -> "Figure":
    """Return a column for each image: itself, and below the evidence of a class over it."""
    columns = min(SHOWN, len(inputs.names))
    with _figure(title, 2, max(columns, 2), cell=2.6) as (figure, axes):
        for unused in axes[:, columns:].flat:
            unused.set_visible(False)
        for column in range(columns):
            _image(axes[0, column], inputs, column)
            label = inputs.class_name(int(found.classes[column]))
            panel = axes[1, column]
            panel.set_title(f"{label}, {found.probabilities[column]:.1%}", fontsize=10)
            shown = _overlay(panel, inputs.pixels[column], found.maps[column])
        positions = " × ".join(map(str, found.maps.shape[1:]))
        label = f"evidence, as a part of the image's largest, at {positions} positions"
        _scale(figure, shown, axes, label)
    return figure


def _overlay(panel: "Axes", pixels: Tensor, evidence: Tensor) -> "AxesImage":
    """Show the evidence (h, w) over an image (3, H, W), which is grey below it."""
    extent = (0, pixels.shape[2], pixels.shape[1], 0)
    panel.imshow(pixels.float().mean(0).numpy(), cmap="gray", vmin=0, vmax=255, extent=extent)
    # Smoothed, since what lies between the positions is seen by several of them.
    relative = (evidence / evidence.max().clamp_min(1e-30)).numpy()
    return panel.imshow(
        relative, cmap=OVERLAY, vmin=0, vmax=1, alpha=0.6,
        extent=extent, interpolation="bilinear",
    )  # fmt: skip


def receptive_field_figure(title: str, fields: Sequence[ReceptiveField]) -> "Figure":
    """Return a panel for each stage: the gradient over the input, on one logarithmic scale."""
    from matplotlib.colors import LogNorm

    relative = [
        (field.gradient / field.gradient.max().clamp_min(1e-30)).clamp_min(FAINTEST)
        for field in fields
    ]
    with _figure(title, 1, len(fields), cell=2.6) as (figure, axes):
        for number, (panel, values, field) in enumerate(
            zip(axes[0], relative, fields, strict=True), start=1
        ):
            shown = panel.imshow(values.numpy(), cmap=COLOURS, norm=LogNorm(FAINTEST, 1))
            radii = [_outline(panel, field, share) for share in SHARES]
            panel.set_title(f"stage {number}", fontsize=10)
            lines = [
                f"{share:.0%} within ± {radius:g} px"
                for share, radius in zip(SHARES, radii, strict=True)
            ]
            panel.set_xlabel("\n".join(lines), fontsize=9)
        _scale(figure, shown, axes, "|gradient|, as a part of the largest")
    return figure


def _outline(panel: "Axes", field: ReceptiveField, share: float) -> float:
    """Outline the smallest central square with a share of the gradient; return its radius."""
    from matplotlib.patches import Rectangle

    radius = field.radius(share)
    row, column = field.centre
    side = 2 * radius + 1
    corner = column - side / 2, row - side / 2
    panel.add_patch(
        Rectangle(corner, side, side, fill=False, color="white", linestyle=SHARES[share])
    )
    return radius


def _grid(
    title: str, inputs: Inputs, labels: Sequence[str], maps: Sequence[Tensor], unit: str, *,
    shared: bool,
) -> "Figure":  # fmt: skip
    """Return a row for each image: itself, then its maps, (B, h, w) each."""
    rows = min(SHOWN, len(inputs.names))
    ranges = [(float(it[:rows].min()), float(it[:rows].max())) for it in maps]
    if shared:
        ranges = [(min(low for low, _ in ranges), max(high for _, high in ranges))] * len(maps)
    with _figure(title, rows, len(maps) + 1) as (figure, axes):
        for row in range(rows):
            _image(axes[row, 0], inputs, row)
        axes[0, 0].set_title("image", fontsize=10)
        for column, (label, values, (low, high)) in enumerate(
            zip(labels, maps, ranges, strict=True), start=1
        ):
            for row in range(rows):
                shown = axes[row, column].imshow(
                    values[row].numpy(), cmap=COLOURS, vmin=low, vmax=high
                )
            axes[0, column].set_title(label, fontsize=10)
            if not shared:
                size = " × ".join(map(str, values.shape[1:]))
                _scale(figure, shown, axes[:, column], f"{unit}\n{size} positions")
        if shared:
            size = " × ".join(map(str, maps[0].shape[1:]))
            _scale(figure, shown, axes[:, 1:], f"{unit}, {size} positions")
    return figure


@contextmanager
def _figure(
    title: str, rows: int, columns: int, cell: float = _TILE
) -> Iterator[tuple["Figure", Any]]:
    """Yield a figure with its axes (rows, columns), without ticks, below its title."""
    from matplotlib.figure import Figure

    with style(title):
        lines = title.count("\n") + 1
        figure = Figure(
            figsize=(cell * columns, cell * rows + _BAR + 0.3 * lines), layout="constrained"
        )
        axes = figure.subplots(rows, columns, squeeze=False)
        for panel in axes.flat:
            panel.grid(visible=False)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
        figure.suptitle(title, fontsize=11)
        yield figure, axes


def _image(panel: "Axes", inputs: Inputs, row: int) -> None:
    panel.imshow(inputs.pixels[row].permute(1, 2, 0).numpy())
    name = inputs.names[row]
    short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    panel.set_ylabel(short, fontsize=9, color=PALETTE["ink"][0])


def _scale(figure: "Figure", shown: "AxesImage", axes: Any, label: str) -> None:
    columns = axes.shape[1] if axes.ndim == 2 else 1  # a scale of one thickness, however wide
    bar = figure.colorbar(
        shown, ax=axes, location="bottom", label=label, aspect=14 * columns, shrink=0.9, pad=0.02
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    bar.ax.xaxis.label.set_fontsize(9)
