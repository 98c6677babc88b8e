"""What tests share: projects, runs, servers, a cluster."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout that is tested."""
