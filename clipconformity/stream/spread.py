"""Spread of a set's conformity to itself, whole and without each bucket."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.stream.moments import BUCKETS, Moments


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
    towards = (units.float() @ sums.T.float()).double()  # (k, G): small relative to the whole, which is exact
    whole = (units @ sums.sum(0))[:, None]
    if moments.grouped:
        own = buckets[:, None]
        moved = (whole - towards.gather(1, own) - towards) / (count.sum() - count[own] - count)
    else:
        moved = (whole - towards - 1) / (count.sum() - count - 1)
    inside = buckets[:, None] == torch.arange(BUCKETS)
    center = values.mean()
    fixed, moving = (_std_outside(x - center, inside) for x in (values[:, None].expand_as(moved), moved))
    return Spread(values.std(), fixed, moving)


def _std_outside(apart: Tensor, inside: Tensor) -> Tensor:
    """Standard deviation of each column ``(k, G)`` over the rows that are not inside; values near their mean."""
    left = (~inside).sum(0)
    apart = torch.where(inside, 0.0, apart)
    return ((apart.square().sum(0) - apart.sum(0).square() / left) / (left - 1)).clamp_min(0).sqrt()
