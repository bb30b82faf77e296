"""Comparison of evaluated samples with a reference in typicality and variety, with uncertainties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clipconformity.functional.resampling import (
    Estimate,
    Interval,
    effective_number,
    exponentiate_interval,
    joint_jackknife,
)
from clipconformity.stream.moments import Moments, assign_buckets
from clipconformity.stream.overlap import MAX_DISTANCE, Overlap, find_overlap
from clipconformity.stream.pairs import Without, cross_pairs, own_pairs_without
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.row_sample import Sample

TINY = 1e-9
"""Mean cosine distance, or spread, below which a set does not vary beyond rounding."""
RARE_PROBABILITY = 0.025
"""Probability that a rare part of a set is missing in its sample."""
MAX_SHIFT = 5.0
"""Standard deviations below the reference at which samples may be of another kind: texts are 8 to 16 below images."""
MIN_ROWS = 50
"""Smallest number of independent samples on either side for accurate coverage of intervals."""
MIN_GROUPS = 40
"""Smallest number of groups of equal size, likewise."""
MIN_BUCKETS = 20
"""Smallest effective number of buckets; equal rows without ids share a bucket."""
MIN_FOR_UNCERTAINTY = 5
"""Number of samples from which an unknown uncertainty has another reason than their number."""
FEW_SAMPLES, FEW_GROUPS = "few samples", "few groups"
COUNT_AS_ONE = "equal rows without ids count as one"


@dataclass(frozen=True)
class Contrast:
    """Evaluated samples compared with a reference, by the buckets of both.

    The jackknife leaves each bucket out of both sides at once.

    Attributes:
        evaluated: The evaluated side.
        reference: The reference.
        sketch: The distinct rows in the sample of the evaluated side, on the CPU.
        overlap: Samples and groups that both share.
    """

    evaluated: Moments
    reference: ReferenceSet
    sketch: Sample
    overlap: Overlap

    @classmethod
    def build(cls, evaluated: Moments, reference: ReferenceSet) -> Contrast:
        """Compare a stream with a reference, after finding the samples that both share."""
        sketch = evaluated.sketch().cpu()
        grouped = evaluated.grouped and reference.grouped
        return cls(evaluated, reference, sketch, find_overlap(sketch, reference.sketch, grouped=grouped))

    def notes(self, of_one_kind: bool) -> list[str]:
        """Describe remarkable facts about these samples, a sentence each.

        Args:
            of_one_kind: Whether encoder and modality of both sides are known to agree.
        """
        notes, below = self.overlap.notes(), -float(self.typicality_shift.value)
        if self.are_equal:
            notes.append(f"all {self.count} samples are equal, so there is no variety.")
        if below > MAX_SHIFT and not of_one_kind:
            notes.append(
                f"the mean conformity lies {below:.1f} standard deviations below the reference's: are these embeddings "
                "of the other modality, or of another encoder?"
            )
        return notes

    @property
    def count(self) -> int:
        """Number of evaluated samples."""
        return int(self.evaluated.total)

    @cached_property
    def are_equal(self) -> bool:
        """Whether all evaluated samples are one sample, but for the rounding of an encoder."""
        norms, mean = self.sketch.values[:, 0], self.unit_mean
        one_length = norms.max() - norms.min() < math.sqrt(MAX_DISTANCE) * norms.max()  # a cosine errs by the square
        one_direction = min((self.sketch.units @ mean).min(), mean @ mean) > 1 - MAX_DISTANCE
        return self.count > 1 and bool(one_length & one_direction)

    @property
    def unknown(self) -> str:
        """Reason why uncertainties are unknown; None where they are known."""
        for side, whose in ((self._mine, "samples"), (self.reference.moments, "samples of the reference")):
            if side.total >= MIN_FOR_UNCERTAINTY and effective_number(side["count"]) < 2 + 1e-9:
                alike = "belong to one or two groups" if side.grouped else f"are equal, and {COUNT_AS_ONE}"
                return f"nearly all {whose} {alike}"
        return "there are too few samples"

    @cached_property
    def few(self) -> str | None:
        """Which of few samples and few groups makes intervals and tests inaccurate; None if neither does."""
        for side, sample in ((self._mine, self.sketch), (self.reference.moments, self.reference.sketch)):
            if side.grouped:
                sizes = torch.zeros(len(sample.keys)).index_add_(
                    0, sample.groups.unique(return_inverse=True)[1], sample.copies.float()
                )
                if effective_number(sizes) < MIN_GROUPS:
                    return FEW_GROUPS
            if float(side.total) < MIN_ROWS or effective_number(side["count"]) < MIN_BUCKETS:
                return FEW_SAMPLES
        return None

    @cached_property
    def conformity(self) -> Without:
        """Mean conformity of the evaluated rows to the reference."""
        return cross_pairs(self.evaluated, self.reference.moments, self.overlap)

    @cached_property
    def typicality(self) -> Without:
        """Mean conformity minus the reference's own, in standard deviations of the reference's conformity."""
        spread, (own, own_without) = self.reference.spread, own_pairs_without(self.reference.moments)
        mean = self.conformity
        return Without(
            (mean.whole - own) / spread.whole,
            (mean.both - own_without) / spread.moving,
            (mean.evaluated - own) / spread.whole,
            (mean.reference - own_without) / spread.moving,
        )

    @cached_property
    def log_variety(self) -> Without:
        """Logarithm of the mean cosine distance of two rows, over that of the reference."""
        (mine, without), (theirs, others) = (own_pairs_without(side) for side in (self._mine, self.reference.moments))
        return _log_ratio(*((1 - x).clamp_min(TINY) for x in (mine, without, theirs, others)))

    @cached_property
    def typicality_shift(self) -> Estimate:
        """:attr:`typicality` with its uncertainty."""
        return self._estimate(self.typicality)

    @cached_property
    def log_variety_ratio(self) -> Estimate:
        """:attr:`log_variety` with its uncertainty."""
        return self._estimate(self.log_variety)

    @cached_property
    def log_spread_ratio(self) -> Estimate:
        """:attr:`log_spread` with its uncertainty."""
        return self._estimate(self.log_spread)

    @property
    def counts(self) -> tuple[Tensor, Tensor]:
        """Rows of each bucket on either side, ``(G,)`` each."""
        return self._mine["count"], self.reference.moments["count"]

    @property
    def variety_interval(self) -> Interval:
        """95% interval of the variety ratio.

        A sample of a set that is nearly one point may miss the rest: a share d of the rows, the largest that stays
        unseen with probability 2.5%, could be as varied as the reference. The upper end includes that case.
        """
        estimate = self.log_variety_ratio
        low, high = exponentiate_interval(estimate.interval())
        unseen = 1 - RARE_PROBABILITY ** (1 / max(effective_number(self._mine["count"]), 1.0))
        mine, theirs = float(own_pairs_without(self._mine)[0]), float(self.reference.self_conformity)
        mixed = (1 - unseen) ** 2 * mine + 2 * unseen * (1 - unseen) * float(self.conformity.whole) + unseen**2 * theirs
        return Interval(low, max(high, (1 - mixed) / max(1 - theirs, TINY)) if math.isfinite(high) else high)

    @cached_property
    def log_spread(self) -> Without:
        """Logarithm of the standard deviation of conformity over the reference's."""
        first, second, count = (self.view[name].cpu() for name in ("conformity_sum", "conformity_square_sum", "count"))
        if self.overlap.pairs:
            bucket, weight, with_own, without_own = self._own_rows
            first = first.index_add(0, bucket, weight * (without_own - with_own))
            second = second.index_add(0, bucket, weight * (without_own.square() - with_own.square()))
        left, rest = count.sum() - count, first.sum() - first
        without = (second.sum() - second - rest.square() / left) / (left - 1)
        whole = (second.sum() - first.sum().square() / count.sum()) / (count.sum() - 1)
        spread = self.reference.spread
        sides = whole.clamp_min(0).sqrt(), without.clamp_min(0).sqrt(), spread.whole, spread.fixed
        return _log_ratio(*(x.clamp_min(TINY) for x in sides))

    @cached_property
    def histograms(self) -> Tensor:
        """Conformity of the evaluated rows to the reference by bucket, ``(G, CELLS + 2)``, own row excluded."""
        counts = self.view["conformity_counts"].cpu()
        if not self.overlap.pairs:
            return counts
        bucket, weight, with_own, without_own = self._own_rows
        counts = counts.clone()
        counts.index_put_((bucket, self.reference.grid.locate(with_own)), -weight, accumulate=True)
        counts.index_put_((bucket, self.reference.grid.locate(without_own)), weight, accumulate=True)
        return counts

    @cached_property
    def view(self) -> Moments:
        """The evaluated side with conformity to the reference: its own stream, else its row sample."""
        return self.evaluated.relate_to(self.reference.view(max_samples=self.evaluated.layout.max_samples))

    @cached_property
    def _own_rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Evaluated rows in the reference: bucket, number of copies, conformity with and without the own row."""
        own = Sample(*(part[self.overlap.own] for part in self.sketch))
        bucket, count = assign_buckets(own.groups), torch.tensor(self.reference.count).double()
        if self.reference.between is not None and self._mine.grouped:  # the own bucket is already left out
            values = (own.units * self.reference.between[bucket]).sum(1)
            count = count - self.reference.moments["count"][bucket]
        else:
            values = own.units @ self.reference.unit_mean
        return bucket, own.copies.double(), values, (count * values - 1) / (count - 1)

    @property
    def sample(self) -> Sample:
        """The evaluated rows of the sample, with their repeats."""
        return self.sketch.repeat_copies(self.evaluated.layout.max_samples)

    @property
    def unit_mean(self) -> Tensor:
        """Mean unit vector of the evaluated rows, ``(D,)``."""
        return self._mine.unit_mean

    @cached_property
    def _mine(self) -> Moments:
        return self.evaluated.cpu()

    def _estimate(self, figure: Without) -> Estimate:
        return joint_jackknife(figure.whole, figure.both, (figure.evaluated, figure.reference), self.counts)


def _log_ratio(mine: Tensor, without: Tensor, theirs: Tensor, others: Tensor) -> Without:
    """Compute log(mine / theirs), with either side given whole and without each bucket."""
    mine, without, theirs, others = (x.log() for x in (mine, without, theirs, others))
    return Without(mine - theirs, without - others, without - theirs, mine - others)
