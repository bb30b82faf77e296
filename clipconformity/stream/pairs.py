"""Averages over pairs of rows, whole and without each bucket, from bucket sums alone."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from clipconformity.functional.resampling import Estimate, jackknife, joint_jackknife
from clipconformity.stream.moments import BUCKETS, Moments, assign_buckets
from clipconformity.stream.overlap import Overlap
from clipconformity.stream.row_sample import Sample

Side: TypeAlias = "tuple[Sample, Moments]"
"""Row sample of a set, on the CPU, with repeated rows; and the moments of the set."""
BLOCK = 512
"""Rows whose cosines are computed at once."""


class Without(NamedTuple):
    """A figure of two sides: whole, and without bucket g of either side or of both, ``(G,)`` each."""

    whole: Tensor
    both: Tensor
    evaluated: Tensor
    reference: Tensor

    @classmethod
    def from_one_side(cls, whole: Tensor, left: Tensor) -> Without:
        """Make a figure of the evaluated side alone: whole, and without each bucket ``(G,)``."""
        return cls(whole, left, left, whole.expand_as(left))


class LeftOut(NamedTuple):
    """A figure of samples, whole and without each bucket, for the comparison of two runs."""

    figure: Without
    counts: tuple[Tensor, ...]
    """Rows of each bucket of the samples and, where the figure depends on it, of the reference, ``(G,)`` each."""
    logarithm: bool = False
    """Whether it is the logarithm of the displayed figure, whose ratio rather than difference is compared."""


def own_pairs(moments: Moments) -> Estimate:
    """Self-conformity of a stream, with its standard error; see :func:`own_pairs_without`."""
    whole, without = own_pairs_without(moments)
    return jackknife(whole, without, moments["count"])


def own_pairs_without(moments: Moments) -> tuple[Tensor, Tensor]:
    """Mean cosine of two different rows of a stream; with groups, of rows of different groups.

    With groups, pairs inside a bucket are left out, and with them all pairs inside a group. With a single group, all
    pairs are used, and the error is unknown.

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
    """Mean cosine; NaN where no pair is left and the sum is only rounding."""
    return torch.where(pairs > 0.5, cosines / pairs, float("nan"))


def cross_pairs(evaluated: Moments, reference: Moments, overlap: Overlap) -> Without:
    """Mean conformity of one stream to another: the mean cosine of a row of either.

    Where both have groups, pairs inside a bucket are left out, and with them all pairs inside a shared group; a shared
    row leaves out its own copy.
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


def estimate_by_influence(value: Tensor, *sides: tuple[Tensor, Sample, Moments]) -> Estimate:
    """Estimate a figure of one or two sides from :func:`influence_without`."""
    figure, counts, _ = influence_without(value, *sides)
    return joint_jackknife(figure.whole, figure.both, (figure.evaluated, figure.reference)[: len(counts)], counts)


def influence_without(value: Tensor, *sides: tuple[Tensor, Sample, Moments], logarithm: bool = False) -> LeftOut:
    """Leave buckets out of a figure to first order, by the influences of sampled rows summed by bucket.

    Args:
        value: The figure.
        sides: The influence of each row ``(k,)``, of mean 0; the row sample; the moments of the side.
        logarithm: Whether the figure is a logarithm.
    """
    left, counts = [], []
    for influence, sample, moments in sides:
        bucket = assign_buckets(sample.groups)
        zeros = torch.zeros(BUCKETS, dtype=torch.float64)
        count = zeros.index_add(0, bucket, torch.ones_like(influence))
        sums = zeros.index_add(0, bucket, influence) * (len(influence) / float(moments.total)) ** 0.5
        left.append(value - sums / (count.sum() - count))
        counts.append(count)
    if len(left) == 1:
        return LeftOut(Without.from_one_side(value, left[0]), tuple(counts), logarithm)
    return LeftOut(Without(value, left[0] + left[1] - value, left[0], left[1]), tuple(counts), logarithm)


class InGroups(NamedTuple):
    """Pairs of rows of one group, estimated for all rows from the row samples."""

    squares: float
    """Sum of their squared cosines."""
    pairs: float


def find_pairs_in_groups(first: Side, second: Side | None = None) -> InGroups:
    """Find the pairs of different rows in one group, of one set or of two; none without groups.

    Args:
        first: Row sample of a set, on the CPU, with repeated rows; and the moments of the set.
        second: The same of the other set; None for pairs inside the first.
    """
    sides = [first, second or first]
    if not all(moments.grouped for _, moments in sides):
        return InGroups(0.0, 0.0)
    units = [sample.units for sample, _ in sides]
    which = torch.cat([sample.groups for sample, _ in sides]).unique(return_inverse=True)[1]
    block = (torch.bincount(which).cumsum(0) // BLOCK)[which]  # whole groups, about this many rows at once
    numbers, blocks = (part.split([len(one) for one in units]) for part in (which, block))
    squares = pairs = 0.0
    for number in block.unique():
        mine, theirs = (own == number for own in blocks)
        same = numbers[0][mine][:, None] == numbers[1][theirs]
        squares += float(((units[0][mine] @ units[1][theirs].T).square() * same).sum())
        pairs += float(same.sum())
    kept, rows = [len(one) for one in units], [float(moments.total) for _, moments in sides]
    if second is None:  # a row with itself
        squares, pairs, kept[1], rows[1] = squares - kept[0], pairs - kept[0], kept[0] - 1, rows[0] - 1
    scale = rows[0] * rows[1] / max(kept[0] * kept[1], 1)
    return InGroups(squares * scale, pairs * scale)


def own_squares(sample: Sample, moments: Moments) -> Tensor:
    """Mean squared cosine of two different rows of a stream, with groups of different groups; NaN where there are none.

    With a single group all pairs are used.
    """
    rows, square = float(moments.total), moments.unit_second_moment.square().sum().cpu()
    inside = find_pairs_in_groups((sample, moments))
    if inside.pairs > rows**2 - rows - 0.5:
        inside = InGroups(0.0, 0.0)
    left = torch.tensor(rows**2 - rows - inside.pairs, dtype=torch.float64)
    return _mean(rows**2 * square - rows - inside.squares, left)


def cross_squares(evaluated: Side, reference: Side, overlap: Overlap) -> Tensor:
    """Mean squared cosine of rows of two streams, without shared samples, as :func:`cross_pairs`."""
    mine, theirs = (side[1].unit_second_moment.cpu() for side in (evaluated, reference))
    rows, inside = float(evaluated[1].total * reference[1].total.cpu()), find_pairs_in_groups(evaluated, reference)
    left = torch.tensor(rows - overlap.pairs - inside.pairs, dtype=torch.float64)
    return _mean(rows * (mine * theirs).sum() - overlap.pairs - inside.squares, left)
