"""Photometric distortion (Liu et al., SSD, 2016) as mmseg 0.30 has it, on 8-bit levels.

Hue, saturation and value are held in 8 bits as OpenCV holds them: hue in steps of two degrees. The
rounding, which can move a level by 4, is part of the distortion.
"""

import numpy as np

from smt.config.augment import Photometric
from smt.data import rng

HUES = 180
"""Steps of a full turn."""

_SHIFT = 12
"""Bits behind the point of OpenCV's fixed-point quotients."""
_HALF = 1 << (_SHIFT - 1)


def distort(rgb: np.ndarray, rule: Photometric) -> np.ndarray:
    """Return `rgb` (3, H, W) uint8 distorted: brightness, contrast, saturation, hue.

    Each happens with a probability of a half; contrast as often after hue as before saturation.
    Uses torch's global generator.
    """
    if rng.bernoulli(0.5):
        rgb = _levels(1, rng.uniform(-rule.brightness, rule.brightness)).take(rgb)
    contrast_first = rng.bernoulli(0.5)
    if contrast_first:
        rgb = _contrast(rgb, rule)
    if rng.bernoulli(0.5):
        hue, saturation, value = to_hsv(rgb)
        saturation = _levels(rng.uniform(*rule.saturation)).take(saturation)
        rgb = to_rgb(hue, saturation, value)
    if rng.bernoulli(0.5):
        hue, saturation, value = to_hsv(rgb)
        largest = int(rule.hue)
        turn = rng.integer(-largest, max(-largest, largest - 1))  # mmseg leaves `largest` out
        rgb = to_rgb((hue + turn) % HUES, saturation, value)
    return rgb if contrast_first else _contrast(rgb, rule)


def _contrast(rgb: np.ndarray, rule: Photometric) -> np.ndarray:
    return _levels(rng.uniform(*rule.contrast)).take(rgb) if rng.bernoulli(0.5) else rgb


def _levels(factor: float, offset: float = 0) -> np.ndarray:
    """Return what becomes of each of the 256 levels, (256,) uint8, cut off and rounded down."""
    levels = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return levels.clip(0, 255).astype(np.uint8)


def to_hsv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hue (0 to 179), saturation and value (0 to 255), each (H, W) int32, of (3, H, W)."""
    red, green, blue = rgb.astype(np.int32)
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    saturation = (spread * _SATURATION.take(value) + _HALF) >> _SHIFT
    sixths = np.where(  # of a turn, times spread
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = (sixths * _HUE.take(spread) + _HALF) >> _SHIFT
    return np.where(hue < 0, hue + HUES, hue), saturation, value


def to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return (3, H, W) uint8 of hue, saturation and value, each (H, W) integers."""
    unit = np.float32(1 / 255)
    saturated, bright = saturation * unit, value * unit
    rgb = np.empty((3, *hue.shape), np.uint8)
    for channel, lacking in enumerate(_LACKING):
        level = bright * (1 - saturated * lacking.take(hue))
        rgb[channel] = np.rint(level * np.float32(255))
    return rgb


def _quotients(numerator: int, factor: int) -> np.ndarray:
    """Return numerator / (factor i) for each i below 256, fixed-point, (256,) int32; 0 for 0."""
    i = np.arange(1, 256)
    return np.concatenate([[0], np.rint((numerator << _SHIFT) / (factor * i))]).astype(np.int32)


def _lacking() -> np.ndarray:
    """Return how much of its value each of R, G, B lacks at each hue if saturated, (3, HUES)."""
    sixths = np.arange(HUES, dtype=np.float32) * np.float32(6 / HUES)
    sector = sixths.astype(np.int32)
    rising = sixths - sector.astype(np.float32)
    none, all_, falling = np.zeros_like(rising), np.ones_like(rising), 1 - rising
    red = np.choose(sector, [none, rising, all_, all_, falling, none])
    green = np.choose(sector, [falling, none, none, rising, all_, all_])
    blue = np.choose(sector, [all_, all_, falling, none, none, rising])
    return np.stack([red, green, blue])


_SATURATION, _HUE, _LACKING = _quotients(255, 1), _quotients(HUES, 6), _lacking()
