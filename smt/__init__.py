"""Reproducibility pipeline for "Scale-Aware Modulation Meet Transformer" (ICCV 2023)."""

__version__ = "0.1.0"
