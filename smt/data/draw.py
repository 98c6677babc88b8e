"""Draws from torch's global generator, which the loader seeds for each image."""

from collections.abc import Sequence
from typing import TypeVar

import torch

Option = TypeVar("Option")


def uniform(low: float, high: float) -> float:
    """Return a number from `low` to `high`."""
    return low + (high - low) * torch.rand(()).item()


def integer(low: int, high: int) -> int:
    """Return an integer from `low` to `high`, both among them."""
    return int(torch.randint(low, high + 1, ()))


def choice(options: Sequence[Option]) -> Option:
    """Return one of `options`, each as likely."""
    return options[integer(0, len(options) - 1)]


def chance(probability: float) -> bool:
    """Return whether something of this probability happens."""
    return torch.rand(()).item() < probability
