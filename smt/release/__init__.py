"""Releases: final weights, model cards and results, ready to be published."""
