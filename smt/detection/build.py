"""From a head's spec to the detector that it describes."""

from smt.detection.atss import ATSSDetector
from smt.detection.dino import DINODetector
from smt.detection.retinanet import RetinaNetDetector
from smt.detection.sparse_rcnn import SparseRCNNDetector
from smt.detection.structures import Backbone, DetectionModel
from smt.detection.two_stage import TwoStageDetector
from smt.head_spec import ATSS, DINO, Detector, RetinaNet, SparseRCNN, TwoStage


def build(backbone: Backbone, head: Detector, classes: int) -> DetectionModel:
    """Return a detector on `backbone`.

    The weights of the head are drawn from torch's global generator.
    """
    match head:
        case TwoStage():
            return TwoStageDetector(backbone, head=head, classes=classes)
        case RetinaNet():
            return RetinaNetDetector(backbone, head=head, classes=classes)
        case ATSS():
            return ATSSDetector(backbone, head=head, classes=classes)
        case SparseRCNN():
            return SparseRCNNDetector(backbone, head=head, classes=classes)
        case DINO():
            return DINODetector(backbone, head=head, classes=classes)
