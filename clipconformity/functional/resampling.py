"""Quantiles behind intervals: Student's t, and the exact limits of a share."""

from __future__ import annotations

import math
from collections.abc import Callable

FRACTION_STEPS = 10_000
"""Most steps of the continued fraction; it needs about sqrt(max(a, b))."""
BISECTIONS = 200
"""Most halvings of a bracket; they end where no float64 lies between its ends."""


def student_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t distribution.

    Args:
        probability: Level in (0, 1).
        degrees: Degrees of freedom, above 0 and not necessarily whole.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> round(student_quantile(0.975, 31), 4)
        2.0395
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability: expected a level between 0 and 1, got {probability}.")
    if not 0 < degrees < math.inf:
        raise ValueError(f"degrees: expected degrees of freedom above 0, got {degrees}.")
    tail = min(probability, 1 - probability)
    if tail == 0.5:
        return 0.0

    def above(t: float) -> bool:
        """Whether the tail beyond t is still larger than the one asked for; each half from its own small side."""
        square = t * t
        if square < degrees:
            return 0.5 - incomplete_beta(0.5, degrees / 2, square / (degrees + square)) / 2 > tail
        return incomplete_beta(degrees / 2, 0.5, degrees / (degrees + square)) / 2 > tail

    high = 1.0
    while above(high):
        high *= 2
    return math.copysign(_bisect(above, 0.0, high), probability - 0.5)


def share_interval(hits: float, count: float, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share (Clopper and Pearson 1934), each side missed in at most half of 1 - ``confidence``.

    Wilson's interval of 20 samples covers a share of 0.9915 in 84% of cases; near 0 and 1 only the exact one holds.

    Args:
        hits: How many of ``count``; not necessarily whole, where rows were turned into independent samples.
        count: Number of independent samples, above 0.
        confidence: Coverage, in (0, 1).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [round(end, 4) for end in share_interval(20, 20)]
        [0.8316, 1.0]
    """
    if not 0 <= hits <= count or count <= 0:
        raise ValueError(f"hits: expected 0 to {count} of a positive count, got {hits}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a share between 0 and 1, got {confidence}.")
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else _bisect(lambda p: incomplete_beta(hits, count - hits + 1, p) < tail, 0.0, 1.0)
    high = 1.0 if hits == count else _bisect(lambda p: incomplete_beta(hits + 1, count - hits, p) < 1 - tail, 0.0, 1.0)
    return low, high


def _bisect(below: Callable[[float], bool], low: float, high: float) -> float:
    """Where ``below`` turns from true to false between ``low`` and ``high``."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction on the side where that is short.

    Source: Abramowitz and Stegun 26.5.8, evaluated as Lentz does.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(scale) / (a * _continued_fraction(a, b, x))


def _continued_fraction(a: float, b: float, x: float) -> float:
    """1 + d_1 / (1 + d_2 / (1 + ...)) of the incomplete beta function."""
    tiny = 1e-300
    value, above, below = 1.0, 1.0, 0.0
    for step in range(1, FRACTION_STEPS):
        half = step // 2
        if step % 2:
            term = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            term = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        below = 1 / (1 + term * below or tiny)
        above = 1 + term / above or tiny
        value *= above * below
        if abs(above * below - 1) < 1e-16:
            break
    return value
