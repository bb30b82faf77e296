"""Nearest rows in another or the own set, also without each bucket of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.neighbours import nearest
from clipconformity.functional.resampling import Estimate, jackknife, joint_jackknife
from clipconformity.stream.moments import BUCKETS, assign_buckets
from clipconformity.stream.row_sample import Sample

CANDIDATES = 12
"""Candidates kept beyond the nearest row, which may be of the own group, and the next ones of its bucket."""


class Closest(NamedTuple):
    """Nearest row of each row, ``(N,)`` each."""

    cosine: Tensor
    which: Tensor
    """Index of the nearest row."""
    next: Tensor
    """Cosine of the nearest row in another bucket than that of the nearest one."""
    buckets: tuple[Tensor, Tensor]
    """Buckets of each row, and of its nearest."""
    counts: tuple[Tensor, Tensor]
    """Rows of each bucket on either side, ``(G,)``."""
    own: bool
    """Whether both sides are one set."""

    @classmethod
    def find(cls, rows: Sample, others: Sample | None = None, *, grouped: bool = False) -> Closest:
        """Find the nearest rows in another set, by default in the own one, each row itself excluded.

        Args:
            rows: The rows.
            others: The rows to search.
            grouped: Whether rows of the same group are excluded as neighbours.
        """
        there = rows if others is None else others
        least = min(CANDIDATES + 1, len(there.keys) - (others is None))
        cosine, index = nearest(rows.rows, None if others is None else others.rows, least)
        bucket = assign_buckets(there.groups)
        allowed = torch.ones_like(cosine, dtype=torch.bool)
        if grouped:
            allowed = there.groups[index] != rows.groups[:, None]
        first = _find_first(allowed)
        best, mine = index.gather(1, first), assign_buckets(rows.groups)
        second = _find_first(allowed & (bucket[index] != bucket[best]))
        return cls(
            cosine.gather(1, first)[:, 0].double(),
            best[:, 0],
            cosine.gather(1, second)[:, 0].double(),
            (mine, bucket[best[:, 0]]),
            (_count_by_bucket(mine), _count_by_bucket(bucket)),
            others is None,
        )

    def mean(self, figure: Callable[[Tensor], Tensor] = lambda cosine: cosine) -> Estimate:
        """Mean of a function of the nearest cosine, with its uncertainty by leaving out buckets of both sides."""
        value, less = figure(self.cosine), figure(self.cosine) - figure(self.next)
        mine, theirs = self.buckets
        rows, stay, total = self.counts[0], mine != theirs, value.sum()
        gone = _sum_by_bucket(theirs, less)
        both = (total - _sum_by_bucket(mine, value) - _sum_by_bucket(theirs[stay], less[stay])) / (len(value) - rows)
        if self.own:
            return jackknife(value.mean(), both, rows)
        sides = (total - _sum_by_bucket(mine, value)) / (len(value) - rows), (total - gone) / len(value)
        return joint_jackknife(value.mean(), both, sides, self.counts)


def _find_first(allowed: Tensor) -> Tensor:
    """Index of the first allowed candidate in each row, ``(N, 1)``; the last where there is none."""
    last = torch.full_like(allowed[:, :1], allowed.shape[1] - 1, dtype=torch.int64)
    return torch.where(allowed.any(1, keepdim=True), allowed.int().argmax(1, keepdim=True), last)


def _sum_by_bucket(bucket: Tensor, values: Tensor) -> Tensor:
    return torch.zeros(BUCKETS, dtype=torch.float64).index_add_(0, bucket, values)


def _count_by_bucket(bucket: Tensor) -> Tensor:
    return torch.bincount(bucket, minlength=BUCKETS).double()
