"""Spread of a set's conformity to itself, whole and without each bucket."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.distances import quick_type
from clipconformity.functional.resampling import PartsLeftOut
from clipconformity.stream.moments import BUCKETS, Moments

BLOCK = 512
"""Rows that are worked through at once."""


class Spread(NamedTuple):
    """Standard deviation of a reference's conformity, whole and without each bucket."""

    whole: Tensor
    fixed: Tensor
    """Without each bucket, under the mean of all, ``(G,)``."""
    moving: Tensor
    """Without each bucket, under the mean of the remaining rows, ``(G,)``."""


def spread_without(values: Tensor, units: Tensor, buckets: Tensor, moments: Moments) -> Spread:
    """Compute the spread without each bucket in turn.

    Args:
        values: Conformity of the sampled rows inside the set; with groups their own bucket is left out, ``(k,)``.
        units: The same rows over their norms, ``(k, D)``.
        buckets: Their buckets, ``(k,)``.
        moments: The whole set.
    """
    count, mean, center = moments["count"], moments.unit_mean, values.mean()
    quick = quick_type()
    apart = (moments["unit_sum"] - count[:, None] * mean).to(quick)  # (G, D)
    own = count if moments.grouped else torch.ones_like(count)  # what a row's own value leaves out
    weight = (1 / (count.sum() - own[:, None] - count)).to(quick)  # of the row's bucket, and of the one left out
    fixed, moving = PartsLeftOut(BUCKETS), PartsLeftOut(BUCKETS)
    # In blocks that stay in the cache. What leaving a bucket out moves is small beside the values, which are exact.
    for value, unit, bucket in zip(values.split(BLOCK), units.split(BLOCK), buckets.split(BLOCK), strict=True):
        nearer = torch.outer(value - unit @ mean, count).to(quick)
        moved = torch.addmm(nearer, unit.to(quick), apart.T, alpha=-1).mul_(weight[bucket])
        fixed.add(value - center, bucket)
        moving.add(value - center, bucket, moved)
    return Spread(values.std(), fixed.variance.sqrt(), moving.variance.sqrt())
