"""Shared by tests of the executor: a real SLURM on this host, and workflows that run on it."""
