"""Averages over pairs of rows, whole and without any one bucket, from the sums of the buckets alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.resampling import Estimate, jackknife, joint_jackknife
from clipconformity.stream.moments import BUCKETS, Moments, bucket_of
from clipconformity.stream.overlap import Overlap
from clipconformity.stream.row_sample import Sample


class Without(NamedTuple):
    """A figure of two sides, whole and without bucket g of either side or of both, ``(G,)`` each."""

    whole: Tensor
    both: Tensor
    evaluated: Tensor
    reference: Tensor


def own_pairs(moments: Moments) -> Estimate:
    """Self-conformity of a stream, with its standard error; see :func:`own_pairs_without`."""
    whole, without = own_pairs_without(moments)
    return jackknife(whole, without, moments["count"])


def own_pairs_without(moments: Moments) -> tuple[Tensor, Tensor]:
    """Mean cosine of two different rows of a stream, or with groups of rows of different ones.

    With groups the pairs inside a bucket are left out, and with them all inside a group; all rows of one group are
    taken as they are, and nothing is known of what another group would give.

    Returns:
        The whole, and without each bucket ``(G,)``.
    """
    count, sums = moments["count"], moments["unit_sum"]
    inner, inner_pairs = sums.square().sum(1), count.square()
    if not moments.grouped or int((count > 0).sum()) == 1:
        inner, inner_pairs = count, count  # a row with itself, whose cosine is 1
    total, rows = sums.sum(0), count.sum()
    whole = _mean(total.square().sum() - inner.sum(), rows.square() - inner_pairs.sum())
    left, apart = rows - count, (total - sums).square().sum(1)
    without = _mean(apart - (inner.sum() - inner), left.square() - (inner_pairs.sum() - inner_pairs))
    return whole.clamp(-1, 1), without


def _mean(cosines: Tensor, pairs: Tensor) -> Tensor:
    """Mean cosine; NaN where no pair is left, whose sum is nothing but rounding."""
    return torch.where(pairs > 0.5, cosines / pairs, float("nan"))


def cross_pairs(evaluated: Moments, reference: Moments, overlap: Overlap) -> Without:
    """Mean conformity of one stream to another: the mean cosine of a row of either.

    Where both have groups, the pairs inside a bucket are left out, and with them all inside a group that both share;
    of rows that both share, each leaves out itself.
    """
    counts = evaluated["count"].cpu(), reference["count"]
    sums = evaluated["unit_sum"].cpu(), reference["unit_sum"]
    inner, inner_pairs = (sums[0] * sums[1]).sum(1), counts[0] * counts[1]
    if not (evaluated.grouped and reference.grouped):
        inner, inner_pairs = inner.new_zeros(len(inner)), inner.new_zeros(len(inner))
    totals, rows = [one.sum(0) for one in sums], [one.sum() for one in counts]
    left_totals = [total - each for total, each in zip(totals, sums, strict=True)]
    left_rows = [total - each for total, each in zip(rows, counts, strict=True)]
    rest, rest_pairs = inner.sum() - inner, inner_pairs.sum() - inner_pairs
    both, mine, theirs = overlap.without

    def mean(cosines: Tensor, pairs: Tensor, own: Tensor | float) -> Tensor:
        return _mean(cosines - own, pairs - own)

    return Without(
        mean(totals[0] @ totals[1] - inner.sum(), rows[0] * rows[1] - inner_pairs.sum(), overlap.pairs),
        mean((left_totals[0] * left_totals[1]).sum(1) - rest, left_rows[0] * left_rows[1] - rest_pairs, both),
        mean(left_totals[0] @ totals[1] - rest, left_rows[0] * rows[1] - rest_pairs, mine),
        mean(left_totals[1] @ totals[0] - rest, left_rows[1] * rows[0] - rest_pairs, theirs),
    )


def influence_estimate(
    value: Tensor, evaluated: tuple[Tensor, Sample, Moments], reference: tuple[Tensor, Sample, Moments]
) -> Estimate:
    """Estimate a figure of two sides from what each sampled row moves it by, to first order, summed by bucket.

    Args:
        value: The figure.
        evaluated: The influence of each row ``(k,)``, of mean 0; the row sample that they are of; all of the side.
        reference: The same of the other side.
    """
    left, counts = zip(*(_moved(*side) for side in (evaluated, reference)), strict=True)
    return joint_jackknife(value, value + left[0] + left[1], (value + left[0], value + left[1]), counts)


def own_influence_estimate(value: Tensor, influence: Tensor, sample: Sample, moments: Moments) -> Estimate:
    """Estimate a figure of one side; ``influence``, ``sample`` and ``moments`` as of :func:`influence_estimate`."""
    left, count = _moved(influence, sample, moments)
    return jackknife(value, value + left, count)


def _moved(influence: Tensor, sample: Sample, moments: Moments) -> tuple[Tensor, Tensor]:
    """How far leaving out each bucket moves a figure, and the sampled rows of each, ``(G,)``."""
    bucket = bucket_of(sample.groups)
    zeros = torch.zeros(BUCKETS, dtype=torch.float64)
    count = zeros.index_add(0, bucket, torch.ones_like(influence))
    share = (len(influence) / float(moments.total)) ** 0.5
    return -zeros.index_add(0, bucket, influence) * share / (count.sum() - count), count
