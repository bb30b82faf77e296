"""Ranks: the area under the ROC curve of every dimension, and the rank correlation of two vectors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.linalg import full_precision, result_dtype
from clipconformity.functional.resampling import (
    MIN_RESAMPLES,
    check_level,
    check_resamples,
    make_generator,
    quantile_levels,
)

MIN_SAMPLES = 10
"""Smallest number of samples for a rank correlation with an interval."""
CHUNK_ENTRIES = 2**21
"""Resampled values ranked at once."""


class RankCorrelation(NamedTuple):
    """Spearman's rank correlation and its bootstrap interval, each in [-1, 1]."""

    correlation: Tensor
    low: Tensor
    high: Tensor


def average_ranks(values: Tensor) -> Tensor:
    """Ranks along the last dimension from 1, equal values sharing the mean of theirs, float64."""
    values = values.contiguous()
    ordered = values.sort(-1).values
    below = torch.searchsorted(ordered, values)
    through = torch.searchsorted(ordered, values, right=True)
    return (below + through + 1).double() / 2


def area_under_curve(positive: Tensor, negative: Tensor) -> Tensor:
    """P(positive > negative) + P(equal)/2 for every dimension of ``(N, D)`` and ``(M, D)``, ``(D,)`` float64.

    The counts are whole numbers, so perfect separation gives exactly 0 or 1.
    """
    queries, ordered = positive.T.contiguous(), negative.T.contiguous().sort(1).values  # (D, N), (D, M)
    below = torch.searchsorted(ordered, queries)
    through = torch.searchsorted(ordered, queries, right=True)
    return (below + through).sum(1).double() / (2 * queries.shape[1] * ordered.shape[1])


@full_precision
def rank_correlation(
    x: Tensor,
    y: Tensor,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    generator: torch.Generator | None = None,
) -> RankCorrelation:
    r"""Spearman's rank correlation of two vectors, with a percentile bootstrap interval over the pairs.

    For conformity against known frequencies or labels, and norm against conformity: are common samples near the
    mean? The correlation is Pearson's of the ranks, equal values sharing the mean of their ranks.

    Args:
        x: Values ``(N,)``, N >= 10, such as conformities.
        y: Values ``(N,)``, such as known frequencies; whole numbers are allowed.
        confidence: Coverage of the interval, in (0, 1).
        resamples: Number of bootstrap resamples, at least 20.
        generator: Source of randomness; by default one with a fixed seed, so that equal data give equal results.

    Returns:
        A :class:`RankCorrelation` of scalars. The sign is undecided where the interval contains 0.

    Raises:
        TypeError: If an argument is not a tensor.
        ValueError: If shapes do not fit, there are too few samples, a value is not finite, all values of a vector are
            equal (or so many that most resamples are), or an option is out of range.

    Source: C. Spearman, 1904; B. Efron, 1979.

    Example:
        >>> import torch
        >>> rank_correlation(torch.arange(20.0), torch.arange(20.0) ** 3)
        RankCorrelation(correlation=tensor(1.), low=tensor(1.), high=tensor(1.))
    """
    pair = torch.stack(_check_vectors(x, y))  # (2, N)
    check_level(confidence)
    check_resamples(resamples, MIN_RESAMPLES)
    source, count = make_generator(generator), pair.shape[1]
    drawn: list[Tensor] = []
    for size in _chunks(resamples, max(1, CHUNK_ENTRIES // count)):
        index = torch.randint(count, (size, count), generator=source, device=source.device).to(pair.device)
        drawn.append(_correlation(average_ranks(pair[0][index]), average_ranks(pair[1][index])))
    values = torch.cat(drawn)
    values = values[torch.isfinite(values)]
    if len(values) < resamples / 2:
        raise ValueError(
            "x, y: the values of one are equal in most resamples, so no interval can be given; add samples that differ."
        )
    fields = (_correlation(*average_ranks(pair)), *values.quantile(quantile_levels(confidence).to(pair.device)))
    dtype = torch.promote_types(result_dtype(x), result_dtype(y))
    return RankCorrelation(*(field.to(x.device, dtype) for field in fields))


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def _check_vectors(x: Tensor, y: Tensor) -> list[Tensor]:
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch tensor of shape (N,), got {type(value).__name__}.")
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and y has shape {tuple(y.shape)}; expected two vectors of equal length."
        )
    pair = [value.detach().cpu().double() for value in (x, y)]
    for name, value in zip(("x", "y"), pair, strict=True):
        if len(value) < MIN_SAMPLES:
            raise ValueError(f"{name}: expected at least {MIN_SAMPLES} values, got {len(value)}; add samples.")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name}: expected finite values, got NaN or infinite ones; remove them.")
        if bool((value == value[0]).all()):
            raise ValueError(f"{name}: all values are equal, so they have no ranks to correlate.")
    return pair


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation along the last dimension; NaN where a side is constant, which the caller handles."""
    dx, dy = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    product = (dx.square().sum(-1) * dy.square().sum(-1)).sqrt()
    return ((dx * dy).sum(-1) / product).clamp(-1, 1)
