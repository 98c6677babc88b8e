"""Data sets, their order and their augmentation."""
