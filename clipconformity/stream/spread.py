"""Spread of a set's conformity to itself, whole and without each bucket."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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
    count, sums = moments["count"], moments["unit_sum"]
    center, total = values.mean(), sums.sum(0)
    left, fixed, moving = torch.zeros_like(count), _Powers.none(count), _Powers.none(count)
    # In blocks that stay in the cache. The part of a bucket is small beside the whole, which is exact.
    for value, unit, bucket in zip(values.split(BLOCK), units.split(BLOCK), buckets.split(BLOCK), strict=True):
        towards = (unit.float() @ sums.T.float()).double()  # (n, G)
        own = bucket[:, None]
        if moments.grouped:
            rest = (unit @ total)[:, None] - towards.gather(1, own) - towards
            moved = rest / (count.sum() - count[own] - count)
        else:
            moved = ((unit @ total)[:, None] - towards - 1) / (count.sum() - count - 1)
        outside = own != torch.arange(BUCKETS)
        left += outside.sum(0)
        fixed.add((value[:, None] - center) * outside)
        moving.add((moved - center) * outside)
    return Spread(values.std(), fixed.std(left), moving.std(left))


class _Powers(NamedTuple):
    """Sums of values and of their squares by bucket."""

    first: Tensor
    second: Tensor

    @classmethod
    def none(cls, like: Tensor) -> _Powers:
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def add(self, values: Tensor) -> None:
        """Add values ``(n, G)``, near 0."""
        self.first.add_(values.sum(0))
        self.second.add_(torch.linalg.vecdot(values, values, dim=0))

    def std(self, count: Tensor) -> Tensor:
        return ((self.second - self.first.square() / count) / (count - 1)).clamp_min(0).sqrt()
