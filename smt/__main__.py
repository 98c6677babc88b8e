"""`python -m smt`: what torchrun starts."""

from smt.cli import main

main()
