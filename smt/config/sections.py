"""Sections of `params/`: the file of each, and what its entries are."""

from collections.abc import Callable, Mapping
from typing import Any

from smt.config.claims import AssumedSpread, Claim
from smt.config.datasets import ClassMap, Dataset
from smt.config.experiments import Experiment
from smt.config.heads import record_of
from smt.config.models import Model
from smt.config.peers import PeerTable
from smt.config.published import Table
from smt.config.recipes import ClassificationRecipe, DetectionRecipe, SegmentationRecipe
from smt.config.released import Preprocessing, ReleasedWeights

SECTIONS: Mapping[str, tuple[str, type | Callable[[Any], type]]] = {
    "models": ("models", Model),
    "heads": ("heads", record_of),
    "recipes": ("recipes", ClassificationRecipe),
    "detection_recipes": ("detection", DetectionRecipe),
    "segmentation_recipes": ("segmentation", SegmentationRecipe),
    "datasets": ("data", Dataset),
    "class_maps": ("data", ClassMap),
    "experiments": ("experiments", Experiment),
    "released": ("released", ReleasedWeights),
    "preprocessings": ("released", Preprocessing),
    "tables": ("tables", Table),
    "peer_tables": ("peers", PeerTable),
    "claims": ("claims", Claim),
    "assumed_spreads": ("claims", AssumedSpread),
}
"""File of each section, and what its entries are."""

OF_EVERY_SCALE = ("tables", "peer_tables", "claims", "assumed_spreads")
"""Sections that a scale cannot overlay."""

RECIPES = {
    "classify": "recipes",
    "detect": "detection_recipes",
    "segment": "segmentation_recipes",
}
"""Section of the recipes of each task."""
