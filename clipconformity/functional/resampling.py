"""Uncertainty: intervals, jackknife, bootstrap, seeds and quantiles."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MAX_EXPONENT = 700.0
"""Exponent above which a float64 exponential is infinite."""
MIN_DEGREES = 1 - 1e-9
"""Smallest degrees of freedom: with fewer, nearly all rows are in one bucket. Two equal buckets have one."""
MIN_RESAMPLES = 20
"""Smallest number of redraws for quantiles as the ends of an interval."""


class Interval(NamedTuple):
    """An interval, ends included."""

    low: float
    high: float


def make_generator(generator: torch.Generator | None) -> torch.Generator:
    """Return the given generator, or a new one with a fixed seed, so that the same data gives the same result."""
    return torch.Generator().manual_seed(0) if generator is None else generator


def check_level(level: float, name: str = "confidence") -> None:
    """Refuse a level outside (0, 1).

    Raises:
        ValueError: If it is outside.
    """
    if not 0 < level < 1:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {level}.")


def check_resamples(resamples: int, least: int = 1) -> None:
    """Refuse fewer than ``least`` resamples.

    Raises:
        ValueError: If there are.
    """
    if resamples < least:
        raise ValueError(f"resamples: expected at least {least}, got {resamples}.")


def check_clusters(count: int) -> None:
    """Refuse a single group, which gives no interval.

    Raises:
        ValueError: If there are fewer than two.
    """
    if count < 2:
        raise ValueError(
            "groups: all samples belong to one group, so neither standard error nor interval can be given; "
            "give ids that differ between independent samples."
        )


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
    from scipy.special import stdtrit

    check_level(probability, "probability")
    if not 0 < degrees < float("inf"):
        raise ValueError(f"degrees: expected degrees of freedom above 0, got {degrees}.")
    return float(stdtrit(degrees, probability))


def student_tail(value: float, degrees: float) -> float:
    """Two-sided tail probability of Student's t.

    Example:
        >>> round(student_tail(2.0395, 31), 3)
        0.05
    """
    from scipy.special import stdtr

    return float(2 * stdtr(degrees, -abs(value)))


def share_interval(hits: float, count: float, confidence: float = 0.95) -> Interval:
    """Exact interval of a share (Clopper and Pearson 1934), with equal error probabilities at both ends.

    Wilson's interval of 20 samples covers a share of 0.9915 in 84% of cases; near 0 and 1 only the exact one holds.

    Args:
        hits: Number of hits in ``count``; may be fractional, where rows were scaled to independent samples.
        count: Number of independent samples, above 0.
        confidence: Coverage, in (0, 1).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [round(end, 4) for end in share_interval(20, 20)]
        [0.8316, 1.0]
    """
    from scipy.special import betaincinv

    if not 0 <= hits <= count or count <= 0:
        raise ValueError(f"hits: expected 0 to {count} of a positive count, got {hits}.")
    check_level(confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, count - hits + 1, tail))
    high = 1.0 if hits == count else float(betaincinv(hits + 1, count - hits, 1 - tail))
    return Interval(low, high)


def name_ends(name: str, interval: tuple[float, float]) -> dict[str, Tensor]:
    """Return the ends of an interval as scalars, under ``NAME_low`` and ``NAME_high``."""
    return {
        f"{name}_{end}": torch.as_tensor(x, dtype=torch.float64)
        for end, x in zip(Interval._fields, interval, strict=True)
    }


def exponentiate_interval(interval: Interval) -> Interval:
    """Convert the interval of a logarithm to that of the ratio."""
    return Interval(*(math.exp(min(end, MAX_EXPONENT)) for end in interval))


class Estimate(NamedTuple):
    """A figure with its uncertainty."""

    value: Tensor
    error: Tensor
    """Standard error; NaN where it is unknown."""
    degrees: float
    """Degrees of freedom of the error; 0 where it is unknown."""
    parts: tuple[float, ...] = ()
    """Contribution of each of several independent sides to the squared error."""

    def half_width(self, confidence: float = 0.95) -> float:
        """Half width of the interval by Student's t; NaN where it is unknown."""
        if not self.degrees > 0:
            return math.nan
        return student_quantile((1 + confidence) / 2, self.degrees) * float(self.error)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Interval by Student's t; NaN where it is unknown."""
        half = self.half_width(confidence)
        return Interval(float(self.value) - half, float(self.value) + half)


def effective_number(count: Tensor) -> float:
    """Effective number of buckets of these sizes, (sum n)^2 / sum n^2 (Kish 1965); 0 where all are empty."""
    squares = float(count.square().sum())
    return float(count.sum()) ** 2 / squares if squares > 0 else 0.0


def estimate_share(estimate: Estimate, count: float, confidence: float = 0.95) -> Interval:
    """Interval of a share with a known standard error: the exact one at the number of samples that the error implies.

    Korn and Graubard (1998). Where all or none are hits, the error of 0 is meaningless, and ``count`` is used.

    Args:
        estimate: The share.
        count: Number of independent samples, above 0, as an upper bound.
        confidence: Coverage, in (0, 1).

    Returns:
        The ends; NaN where the error is unknown.
    """
    if not estimate.degrees > 0:
        return Interval(math.nan, math.nan)
    share, variance = float(estimate.value), float(estimate.error) ** 2
    worth = share * (1 - share) / variance if variance > 0 else math.inf
    level = (1 + confidence) / 2
    worth *= (student_quantile(level, max(count - 1, 1.0)) / student_quantile(level, estimate.degrees)) ** 2
    worth = count if not 0 < share < 1 else min(worth, count)
    return share_interval(share * worth, worth, confidence)


def jackknife_error(left_out: Tensor, count: Tensor) -> Tensor:
    """Standard error of a scalar from its values without each bucket; NaN where all rows are in one bucket.

    Args:
        left_out: The figure without bucket g, ``(G,)``.
        count: Rows of each bucket ``(G,)``; empty buckets are ignored.
    """
    values = left_out[count > 0]
    used = len(values)
    if used < 2:  # the spread between groups is unknown
        return torch.full_like(count.sum(), float("nan"))
    return ((used - 1) / used * (values - values.mean()).square().sum()).sqrt()


def jackknife(value: Tensor, left_out: Tensor, count: Tensor) -> Estimate:
    """Estimate a figure of one side with its error; arguments as of :func:`jackknife_error`."""
    return _make_estimate(value, jackknife_error(left_out, count), effective_number(count) - 1)


def joint_jackknife(value: Tensor, left_out: Tensor, sides: tuple[Tensor, ...], counts: tuple[Tensor, ...]) -> Estimate:
    """Estimate a figure of several sides with common buckets; each bucket is left out of all sides at once.

    Sides that share groups are paired; for others, the covariance of a bucket's contributions is 0, and the error is
    that of independent sides. The degrees of freedom are Satterthwaite's.

    Args:
        value: The figure.
        left_out: Its values without bucket g of all sides, ``(G,)``.
        sides: Its values without bucket g of one side and with all of the others, ``(G,)`` each.
        counts: Rows of each bucket on every side, ``(G,)`` each.
    """
    error = jackknife_error(left_out, torch.stack(counts).sum(0))
    parts = tuple(float(jackknife_error(own, count)) ** 2 for own, count in zip(sides, counts, strict=True))
    known = [effective_number(count) - 1 for count in counts]
    if not math.isfinite(sum(parts)) or min(known) < MIN_DEGREES:
        return Estimate(value, torch.full_like(error, math.nan), 0.0)
    spread = sum(part**2 / degrees for part, degrees in zip(parts, known, strict=True))
    return _make_estimate(value, error, sum(parts) ** 2 / spread if spread > 0 else min(known), parts)


def _make_estimate(value: Tensor, error: Tensor, degrees: float, parts: tuple[float, ...] = ()) -> Estimate:
    if not math.isfinite(float(error)) or degrees < MIN_DEGREES:
        return Estimate(value, torch.full_like(error, math.nan), 0.0)
    return Estimate(value, error, degrees, parts)


class PartsLeftOut:
    """Mean and variance of values without each of several parts, where that may also move the values that are left.

    Args:
        parts: Number of parts P.
    """

    def __init__(self, parts: int) -> None:
        self.count, self.first, self.second = torch.zeros(3, parts, dtype=torch.float64)

    def add(self, values: Tensor, part: Tensor, moved: Tensor | None = None) -> None:
        """Add some values.

        Args:
            values: Values near 0, ``(n,)`` float64.
            part: The part of each, ``(n,)``.
            moved: What is added to each value without each part, ``(n, P)``; it is written over.
        """
        powers = (self.count, torch.ones_like(values)), (self.first, values), (self.second, values.square())
        for total, power in powers:
            total.add_(power.sum()).index_add_(0, part, -power)
        if moved is not None:
            moved.scatter_(1, part[:, None], 0.0)  # a part that is left out has no values
            self.first += moved.sum(0)
            self.second += 2 * (values.to(moved) @ moved) + torch.linalg.vecdot(moved, moved, dim=0)

    @property
    def mean(self) -> Tensor:
        """Mean without each part, ``(P,)``."""
        return self.first / self.count

    @property
    def variance(self) -> Tensor:
        """Variance without each part, with N - 1, ``(P,)``."""
        return ((self.second - self.first.square() / self.count) / (self.count - 1)).clamp_min(0)


def mean_error(sums: Tensor, count: Tensor) -> Tensor:
    """Standard error of a mean from its bucket sums ``(G,)``."""
    return jackknife_error((sums.sum() - sums) / (count.sum() - count), count)


def bootstrap_weights(resamples: int, clusters: int, generator: torch.Generator) -> Tensor:
    """Number of times that each of ``clusters`` is drawn, ``(resamples, clusters)`` float64."""
    return count_draws(
        torch.randint(clusters, (resamples, clusters), generator=generator, device=generator.device), clusters
    )


def count_draws(drawn: Tensor, clusters: int) -> Tensor:
    """Count each number below ``clusters`` in each row, ``(R, N)`` to ``(R, clusters)`` float64."""
    ones = torch.ones((), dtype=torch.float64, device=drawn.device).expand(drawn.shape)
    return torch.zeros(len(drawn), clusters, dtype=torch.float64, device=drawn.device).scatter_add_(1, drawn, ones)


def quantile_levels(confidence: float) -> Tensor:
    """Quantile levels of the two ends of a central interval, ``(2,)``."""
    return torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)


def basic_interval(point: Tensor, bias: Tensor | float, draws: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """Basic bootstrap interval of a divergence, clipped at 0.

    The plug-in divergence of resamples exceeds that of the sample as that exceeds the true value. Twice the sample's
    value minus the resamples' quantiles therefore has no bias, by which the percentile interval would always miss a
    value of 0. Near 0 the distribution is skewed, and the upper end is at least the percentile minus both biases.

    Args:
        point: Plug-in values ``(...)``.
        bias: Their expected excess, ``(...)``.
        draws: Plug-in values of the resamples ``(..., R)``.
        confidence: Coverage, in (0, 1).

    Returns:
        The ends, each ``(...)``, with the bias-corrected value between them.
    """
    below, above = draws.quantile(quantile_levels(confidence), dim=-1)
    value = point - bias
    low = torch.minimum(2 * point - above, value)
    high = torch.maximum(torch.maximum(2 * point - below, above - 2 * bias), value)
    return low.clamp_min(0), high.clamp_min(0)
