"""Audits of runs: stretches between milestones are trained again, and compared byte for byte."""
