"""Helpers of tests: projects, runs, servers."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout under test."""
