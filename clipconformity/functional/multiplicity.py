"""Multiple estimates: p-values adjusted for their number, and values shrunk towards their mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch

MIN_ESTIMATES = 3
"""Smallest number of estimates for their variance beyond the errors."""


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values to control the false discovery rate (Benjamini and Hochberg 1995).

    Example:
        >>> [round(p, 4) for p in adjust_p_values([0.01, 0.5, 0.02])]
        [0.03, 0.5, 0.03]
    """
    order = sorted(range(len(p_values)), key=lambda one: -p_values[one])
    found, least = [1.0] * len(p_values), 1.0
    for place, one in enumerate(order):
        least = min(least, p_values[one] * len(p_values) / (len(p_values) - place))
        found[one] = least
    return found


def adjust_p_values_stepwise(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values to control the family-wise error rate (Holm 1979).

    Example:
        >>> [round(p, 4) for p in adjust_p_values_stepwise([0.01, 0.5, 0.02])]
        [0.03, 0.5, 0.04]
    """
    found, least = [1.0] * len(p_values), 0.0
    for place, one in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        least = max(least, min(1.0, p_values[one] * (len(p_values) - place)))
        found[one] = least
    return found


def shrink_estimates(values: Sequence[float], errors: Sequence[float]) -> list[float] | None:
    """Shrink estimates towards their mean by empirical Bayes: the extremes of many noisy ones are partly chance.

    The variance between them is that of DerSimonian and Laird (1986).

    Args:
        values: The estimates.
        errors: Their standard errors, above 0.

    Returns:
        The shrunken values; None for fewer than three.

    Example:
        >>> shrink_estimates([-1.0, 0.0, 1.0], [2.0, 2.0, 2.0])
        [0.0, 0.0, 0.0]
    """
    if len(values) < MIN_ESTIMATES:
        return None
    x, noise = (torch.tensor(one, dtype=torch.float64) for one in (values, errors))
    noise = noise.square()
    weight = 1 / noise
    apart = (weight * (x - (weight @ x) / weight.sum()).square()).sum() - (len(x) - 1)
    between = (apart / (weight.sum() - weight.square().sum() / weight.sum())).clamp_min(0)
    weight = 1 / (noise + between)
    mean = (weight @ x) / weight.sum()
    shrunk: list[float] = (mean + between / (between + noise) * (x - mean)).tolist()
    return shrunk
