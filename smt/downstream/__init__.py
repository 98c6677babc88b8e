"""What detectors and segmenters have in common."""
