"""Detectors of the paper's COCO tables, on the backbone that all tasks share."""
