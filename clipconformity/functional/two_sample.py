"""Test whether two samples come from one distribution: Anderson-Darling, and redraws under that hypothesis.

Both use histograms over common cells, which are fine enough for the test: a permutation of the labels is then a draw
without replacement from the pooled cells.
"""

from __future__ import annotations

import torch
from torch import Tensor


def permute_histograms(
    evaluated: Tensor, reference: Tensor, resamples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Histograms of both sides under random permutations of the labels, for independent rows.

    Args:
        evaluated: Whole counts ``(K,)``.
        reference: Whole counts ``(K,)``.
        resamples: Number of permutations R.
        generator: Source of randomness.

    Returns:
        Counts ``(R, K)`` of either side.
    """
    import numpy as np

    pooled = (evaluated + reference).long()
    used = pooled.nonzero().flatten()
    draw = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    drawn = draw.multivariate_hypergeometric(pooled[used].numpy(), int(evaluated.sum()), resamples, method="marginals")
    mine = torch.zeros(resamples, len(pooled), dtype=torch.float64)
    mine[:, used] = torch.from_numpy(drawn).double()
    return mine, pooled - mine


def flip_histograms(
    evaluated: Tensor, reference: Tensor, resamples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Histograms of both sides under random bucket sign flips, for rows that are dependent inside buckets.

    A bucket's counts minus its share have mean 0: their sign is random, with the same sign for both sides, so that rows
    that the sides share in a bucket stay shared. Added to the pooled distribution, a count may be below 0.

    Args:
        evaluated: Counts by bucket ``(G, K)``.
        reference: Counts by bucket ``(G, K)``.
        resamples: Number of draws R.
        generator: Source of randomness.

    Returns:
        Counts ``(R, K)`` of either side.
    """
    pooled = (evaluated + reference).sum(0)
    pooled = pooled / pooled.sum()
    signs = 2 * torch.randint(2, (resamples, len(evaluated)), generator=generator).double() - 1
    sides = []
    for side in (evaluated, reference):
        rows = side.sum(1, keepdim=True)
        added = side - rows * (side.sum(0) / side.sum())
        sides.append(rows.sum() * pooled + signs @ added)
    return sides[0], sides[1]


def anderson_darling(evaluated: Tensor, reference: Tensor, pooled: Tensor) -> Tensor:
    """Two-sample Anderson-Darling statistic over cells, up to a constant of the sizes.

    Args:
        evaluated: Counts ``(B, K)``.
        reference: Counts ``(B, K)``.
        pooled: Counts of both sides together, ``(K,)``, which weight the distances.

    Returns:
        ``(B,)``, larger where the distributions are further apart.

    Source: Scholz and Stephens, *K-sample Anderson-Darling tests*, 1987, for tied values.
    """
    below, total = pooled.cumsum(0), pooled.sum()
    inner = (pooled > 0) & (below < total)
    apart = (evaluated / evaluated.sum(1, keepdim=True) - reference / reference.sum(1, keepdim=True)).cumsum(1)
    weight = pooled[inner] / (below[inner] * (total - below[inner]))
    return apart[:, inner].square() @ weight


def tail_probability(observed: Tensor, draws: Tensor) -> float:
    """p-value: share of draws that reach the observed value, which counts as a draw."""
    reached = int((draws >= observed * (1 - 1e-12)).sum())
    return (1 + reached) / (1 + len(draws))
