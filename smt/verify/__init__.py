"""Consistency of every printed number with its run, and the lineage of a number."""
