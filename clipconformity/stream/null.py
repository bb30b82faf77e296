"""Redraws of both sides as if they were of one distribution.

They use the conformity to the pooled mean of both sides, without the own row or bucket: it treats both sides alike, so
labels are exchangeable under one distribution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.density import CELLS
from clipconformity.functional.divergence import make_grid
from clipconformity.functional.two_sample import flip_histograms, permute_histograms
from clipconformity.stream.contrast import Contrast
from clipconformity.stream.moments import BUCKETS, assign_buckets
from clipconformity.stream.row_sample import Sample

MIN_GROUPS = 50
"""Smallest number of groups for sign flips; with fewer, one row of each group is used."""


class Redraws(NamedTuple):
    """Histograms of both sides, and of their redraws under one distribution."""

    observed: tuple[Tensor, Tensor]
    """``(CELLS + 2,)`` each."""
    evaluated: Tensor
    """``(R, CELLS + 2)``."""
    reference: Tensor
    permuted: bool
    """Whether rows were permuted, as independent ones."""


def redraw(contrast: Contrast, resamples: int, generator: torch.Generator) -> Redraws:
    """Redraw both sides under one distribution.

    Independent rows are permuted. Rows in groups keep their buckets, whose signs are flipped; where there are few
    groups, one row of each is used, and these are permuted, or flipped where both sides share groups.
    """
    grouped = contrast.evaluated.grouped, contrast.reference.grouped
    samples = [contrast.sample, contrast.reference.sample]
    few = any(own and len(side.groups.unique()) < MIN_GROUPS for own, side in zip(grouped, samples, strict=True))
    if few:
        samples = [_choose_one_per_group(side) if own else side for own, side in zip(grouped, samples, strict=True)]
    values = [_pooled_conformities(contrast, side, any(grouped)) for side in samples]
    grid = make_grid(torch.cat(values))
    if any(grouped) and not (few and not contrast.overlap.shared_groups):
        by_bucket = []
        for side, own in zip(samples, values, strict=True):
            cell = assign_buckets(side.groups) * (CELLS + 2) + grid.locate(own)
            by_bucket.append(torch.bincount(cell, minlength=BUCKETS * (CELLS + 2)).double().view(BUCKETS, -1))
        observed = by_bucket[0].sum(0), by_bucket[1].sum(0)
        return Redraws(observed, *flip_histograms(by_bucket[0], by_bucket[1], resamples, generator), False)
    observed = grid.counts(values[0]), grid.counts(values[1])
    return Redraws(observed, *permute_histograms(*observed, resamples, generator), True)


def _pooled_conformities(contrast: Contrast, sample: Sample, apart: bool) -> Tensor:
    """Conformity of each row to both sides pooled, without its own bucket where there are groups, ``(k,)``."""
    rows = sample.units
    sums = contrast.evaluated["unit_sum"].cpu() + contrast.reference.moments["unit_sum"]
    count = contrast.evaluated["count"].cpu() + contrast.reference.moments["count"]
    if not apart:  # the cosine of a row with itself adds the same to every value
        return rows @ (sums.sum(0) / count.sum())
    means = (sums.sum(0) - sums) / (count.sum() - count)[:, None]
    return (rows * means[assign_buckets(sample.groups)]).sum(1)


def _choose_one_per_group(sample: Sample) -> Sample:
    """Choose the row of smallest key in every group."""
    order = sample.keys.argsort(stable=True)
    groups, which = sample.groups[order].unique(return_inverse=True)
    first = torch.full((len(groups),), len(order)).scatter_reduce_(0, which, torch.arange(len(order)), "amin")
    return Sample(*(part[order[first]] for part in sample))
