"""Checkpoints of others: what their files hold, and whether that can be an SMT's weights."""
