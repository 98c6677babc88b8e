"""The SMT family."""
