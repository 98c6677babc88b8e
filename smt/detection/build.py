"""From a head's spec to the detector that it describes.

A detector is imported when it is asked for: the set predictions import SciPy's optimizers.
"""

from smt.config.heads import ATSS, DINO, Detector, RetinaNet, SparseRCNN, TwoStage
from smt.detection.structures import Backbone, DetectionModel


def build(backbone: Backbone, head: Detector, classes: int) -> DetectionModel:
    """Return a detector on `backbone`.

    The weights of the head are initialised from torch's global generator.
    """
    match head:
        case TwoStage():
            from smt.detection.two_stage import TwoStageDetector

            return TwoStageDetector(backbone, head=head, classes=classes)
        case RetinaNet():
            from smt.detection.retinanet import RetinaNetDetector

            return RetinaNetDetector(backbone, head=head, classes=classes)
        case ATSS():
            from smt.detection.atss import ATSSDetector

            return ATSSDetector(backbone, head=head, classes=classes)
        case SparseRCNN():
            from smt.detection.sparse_rcnn import SparseRCNNDetector

            return SparseRCNNDetector(backbone, head=head, classes=classes)
        case DINO():
            from smt.detection.dino import DINODetector

            return DINODetector(backbone, head=head, classes=classes)
