"""Proof that trainings end the same however they are interrupted: by killing them for real."""
