"""Fixtures of tests on several hosts, beside those of all tests."""

from testbed.fixtures import room

__all__ = ["room"]
