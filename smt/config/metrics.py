"""What is measured of a model: its names, and how far two measurements of it may differ."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number that an evaluation gives."""

    heading: str
    """In tables, with its unit."""
    name: str
    """In a sentence."""
    decimals: int
    """That are printed."""
    tolerance: float
    """Largest difference between two evaluations of one file of weights.

    They are equal on the machine that trained; another one adds in another order, which can turn an
    image whose two best classes are nearly tied."""
    percent: bool = True
    """Whether its distances can share an axis with those of others."""

    def format(self, value: float) -> str:
        """Return its name and a value, as in `top-1 82.20`."""
        return f"{self.name} {value:.{self.decimals}f}"


def _average_precision(kind: str, name: str) -> dict[str, Metric]:
    """Return COCO's averages of boxes or of masks."""
    limits = {
        "": "AP", "50": "AP50", "75": "AP75", "_small": "AP small", "_medium": "AP medium",
        "_large": "AP large",
    }  # fmt: skip
    recalls = {
        "1": "AR 1", "10": "AR 10", "100": "AR 100", "_small": "AR small",
        "_medium": "AR medium", "_large": "AR large",
    }  # fmt: skip
    every = {f"{kind}_ap{key}": title for key, title in limits.items()}
    every |= {f"{kind}_ar{key}": title for key, title in recalls.items()}
    return {
        key: Metric(f"{name.capitalize()} {title} (%)", f"{name} {title}", 1, 0.2)
        for key, title in every.items()
    }


METRICS: Mapping[str, Metric] = {
    "top1": Metric("Top-1 (%)", "top-1", 2, 0.1),
    "top5": Metric("Top-5 (%)", "top-5", 2, 0.1),
    "loss": Metric("Loss", "loss", 4, 0.01, percent=False),
    **_average_precision("box", "box"),
    **_average_precision("mask", "mask"),
    "miou": Metric("mIoU (%)", "mIoU", 2, 0.1),
    "miou_ms": Metric("mIoU, multi-scale (%)", "multi-scale mIoU", 2, 0.1),
    "mean_accuracy": Metric("Mean accuracy (%)", "mean accuracy", 2, 0.1),
    "mean_accuracy_ms": Metric(
        "Mean accuracy, multi-scale (%)", "multi-scale mean accuracy", 2, 0.1
    ),
    "pixel_accuracy": Metric("Pixel accuracy (%)", "pixel accuracy", 2, 0.1),
    "pixel_accuracy_ms": Metric(
        "Pixel accuracy, multi-scale (%)", "multi-scale pixel accuracy", 2, 0.1
    ),
}

MEASURED: Mapping[str, tuple[str, ...]] = {
    "classify": ("top1", "top5", "loss"),
    "detect": tuple(name for name in METRICS if name.startswith("box_")),
    "segment": tuple(
        f"{name}{suffix}"
        for suffix in ("", "_ms")
        for name in ("miou", "mean_accuracy", "pixel_accuracy")
    ),
}
"""What an evaluation of each task gives; a detector with a mask head gives those of masks too."""

HEADLINES: Mapping[str, str] = {"classify": "top1", "detect": "box_ap", "segment": "miou"}
"""Metric of each task by which its runs are compared; higher is better."""


def headline(metrics: Collection[str]) -> str | None:
    """Return the metric by which a run with these is compared, or None without any."""
    return next((name for name in HEADLINES.values() if name in metrics), None)
