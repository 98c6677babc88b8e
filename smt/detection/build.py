"""From a head's spec to the detector that it describes."""

from collections.abc import Callable
from importlib import import_module

from smt.config.heads import Detector
from smt.detection.structures import Backbone, DetectionModel


def build(backbone: Backbone, head: Detector, classes: int) -> DetectionModel:
    """Return a detector on `backbone`.

    The weights of the head are initialised from torch's global generator. A spec `ATSS` of kind
    `atss` is that of `ATSSDetector` in `smt/detection/atss.py`. Only that module is imported: a
    task starts in seconds, and the set predictions import SciPy's optimizers.
    """
    module = import_module(f"smt.detection.{head.kind}")
    detector: Callable[..., DetectionModel] = getattr(module, f"{type(head).__name__}Detector")
    return detector(backbone, head=head, classes=classes)
