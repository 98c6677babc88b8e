"""Tests of smt: see README.md in this folder."""
