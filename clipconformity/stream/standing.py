"""Both sides of a conformity KL, its interval, and its noise floor.

For the interval both sides are redrawn by their buckets, which hold whole groups: the same buckets where they share
groups. A redrawn reference has another mean unit vector, so its own conformities and, by the shift m_u(P) . delta, the
evaluated ones are computed under the redrawn mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.density import CELLS
from clipconformity.functional.divergence import (
    MIN_SAMPLES,
    Divergences,
    Readout,
    Side,
    compute_plug_in,
    correct_bias,
    excess_kurtosis,
    is_lower_bound,
    plan_readout,
)
from clipconformity.functional.resampling import (
    Interval,
    basic_interval,
    bootstrap_weights,
    check_clusters,
    check_level,
    check_resamples,
    make_generator,
)
from clipconformity.functional.two_sample import anderson_darling, tail_probability
from clipconformity.stream.contrast import Contrast
from clipconformity.stream.null import Redraws, redraw
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.stream import Stream

CHUNK = 50
"""Resamples of the reference computed at once: 50 x 10,000 conformities."""
PLANS = 4
"""Number of parts of the redraws under one distribution, each with its own smoothing."""
MIN_VARIANCE_SHARE = 0.1
"""Share of the usual variance below which negative counts of a redraw are set to 0."""
MAX_KURTOSIS = 1.0
"""Excess kurtosis above which the tails of a fitted density may be too light."""
HEAVY_TAILS_NOTE = "conformity has heavy tails, which the KL may understate"


class NullDistribution(NamedTuple):
    """Noise floor and p-value under one distribution of both sides."""

    floor: float
    """Quantile of the divergence, nats."""
    p_value: float
    """p-value of the Anderson-Darling test."""


@dataclass(frozen=True)
class Standing:
    """The evaluated side and the reference side of a divergence."""

    evaluated: Side
    reference: Side
    buckets: Tensor
    """Histograms of the evaluated side by bucket, ``(G, CELLS + 2)``."""
    contrast: Contrast

    @classmethod
    def from_stream(cls, stream: Stream) -> Standing:
        """Make both sides from a stream.

        Raises:
            ValueError: If there is no reference, or either side has too few samples.
        """
        moments = stream.read_side(min_samples=MIN_SAMPLES)
        reference = stream.require_reference("ConformityKL")
        if len(reference.conformities) < MIN_SAMPLES:
            raise ValueError(f"reference: expected at least {MIN_SAMPLES} samples, got {reference.count}.")
        contrast = stream.contrast("ConformityKL")
        buckets = contrast.histograms
        evaluated = make_evaluated_side(buckets, moments.grouped)
        return cls(evaluated, make_reference_side(reference), buckets, contrast)

    @property
    def against(self) -> ReferenceSet:
        """The reference side's set."""
        return self.contrast.reference

    @cached_property
    def is_lower_bound(self) -> bool:
        """Whether the supports barely overlap, or a tail dominates."""
        return is_lower_bound(self.plan, self.evaluated, self.reference)

    @property
    def heavy_tails(self) -> bool:
        """Whether a side has heavier tails than the fitted densities may show."""
        return max(excess_kurtosis(side.counts) for side in (self.evaluated, self.reference)) > MAX_KURTOSIS

    @property
    def parts(self) -> int:
        """Number of buckets that hold evaluated rows."""
        return int((self.buckets.sum(1) > 0).sum())

    @cached_property
    def plan(self) -> Readout:
        """Read-out settings of the two histograms."""
        return plan_readout(self.evaluated, self.reference)

    @cached_property
    def plain(self) -> Divergences:
        """Plug-in divergences both ways, before the bias correction."""
        return compute_plug_in(self.plan, self.evaluated.counts[None], self.reference.counts[None])

    def divergences(self) -> Divergences:
        """Bias-corrected divergences both ways."""
        return correct_bias(self.plan, self.plain, squeeze=True)

    def interval(self, confidence: float, resamples: int, generator: torch.Generator | None) -> Interval:
        """Bootstrap interval of the forward divergence."""
        check_level(confidence)
        check_resamples(resamples)
        check_clusters(self.parts)
        draws = compute_plug_in(self.plan, *self._redraw(resamples, make_generator(generator))).forward
        low, high = basic_interval(self.plain.forward[0], sum(self.plan.biases), draws, confidence)
        return Interval(float(low), float(high))

    def redraw_null(self, quantile: float, resamples: int, generator: torch.Generator | None) -> NullDistribution:
        """Compute the noise floor and the p-value for one distribution, from the same redraws."""
        check_level(quantile, "quantile")
        check_resamples(resamples)
        check_clusters(self.parts)
        redraws = redraw(self.contrast, resamples, make_generator(generator))
        mine, theirs = redraws.observed
        pooled = mine + theirs
        observed = anderson_darling(mine[None], theirs[None], pooled)
        p_value = tail_probability(observed, anderson_darling(redraws.evaluated, redraws.reference, pooled))
        return NullDistribution(float(self._compute_divergences(redraws).quantile(quantile)), p_value)

    def _compute_divergences(self, redraws: Redraws) -> Tensor:
        """Bias-corrected divergences of redraws, ``(R,)``.

        The smoothing is chosen on redraws, for each part of them: on the pooled histogram, which has less noise than
        either side, it would be stronger than on the observed ones, and the divergences smaller. Where one row of each
        group was permuted, divergences are rescaled to the effective numbers of rows: noise goes with the sum of 1/N.
        """
        effective, found = [side.effective for side in (self.evaluated, self.reference)], []
        sizes = [float(side.sum()) for side in redraws.observed] if redraws.permuted else effective
        scale = sum(1 / size for size in effective) / sum(1 / size for size in sizes)
        sides = (make_fittable(side).tensor_split(PLANS) for side in (redraws.evaluated, redraws.reference))
        for mine, theirs in zip(*sides, strict=True):
            if len(mine):
                first = [Side(side[0].clamp_min(0), size) for side, size in zip((mine, theirs), sizes, strict=True)]
                readout = plan_readout(*first)
                found.append(correct_bias(readout, compute_plug_in(readout, mine, theirs)).forward)
        return scale * torch.cat(found)

    def _redraw(self, resamples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Redraw buckets; return histograms ``(R, CELLS + 2)`` of both sides."""
        counts = self.buckets.sum(1), self.against.moments["count"]
        if self.contrast.overlap.shared_groups:
            mine = theirs = bucket_weights(counts[0] + counts[1], resamples, generator)
        else:
            mine, theirs = (bucket_weights(count, resamples, generator) for count in counts)
        evaluated = mine @ self.buckets
        reference = redraw_reference(self.against, self.contrast.unit_mean, theirs)
        kept = (evaluated.sum(1) > 0) & (reference.sum(1) > 0)
        return evaluated[kept], reference[kept]


def make_fittable(histograms: Tensor) -> Tensor:
    """Return redraws ``(R, CELLS + 2)`` to which a density can be fitted; counts may be below 0.

    Where negative counts leave a histogram without spread, they are set to 0.
    """
    cell = torch.arange(histograms.shape[1], dtype=histograms.dtype)
    total = histograms.sum(1)
    mean = histograms @ cell / total
    variance = histograms @ cell.square() / total - mean.square()
    kept = variance > MIN_VARIANCE_SHARE * variance.median()
    return torch.where(kept[:, None], histograms, histograms.clamp_min(0))


def bucket_weights(count: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """Number of times that each non-empty bucket is drawn, ``(resamples, G)``."""
    used = count > 0
    weights = torch.zeros(resamples, len(count), dtype=torch.float64)
    weights[:, used] = bootstrap_weights(resamples, int(used.sum()), generator)
    return weights


def make_evaluated_side(histogram: Tensor, grouped: bool) -> Side:
    """Make the evaluated side of a divergence from bucket histograms ``(G, CELLS + 2)``."""
    counts = histogram.sum(0)
    total = float(counts.sum())
    return Side(counts, total / (design_effect(histogram) if grouped else 1.0))


def make_reference_side(reference: ReferenceSet) -> Side:
    """Make the reference side of a divergence from its row sample."""
    values, grid = reference.null_conformities, reference.grid
    effect = 1.0
    if reference.grouped:
        cell = reference.clusters * (CELLS + 2) + grid.locate(values)
        cells, weight = cell.unique(return_counts=True)
        effect = _design_effect(cells // (CELLS + 2), cells % (CELLS + 2), weight.double())
    return Side(grid.counts(values), len(values) / effect)


def design_effect(histogram: Tensor) -> float:
    """Number of rows per independent sample, from the spread between buckets; at least 1."""
    cluster, cell = histogram.nonzero(as_tuple=True)
    return _design_effect(cluster, cell, histogram[cluster, cell])


def _design_effect(cluster: Tensor, cell: Tensor, weight: Tensor) -> float:
    """Average ratio of the variances, of mean and spread, under clusters to those under independent rows."""
    total = weight.sum()
    z = cell.double()
    z = z - weight @ z / total
    square = z.square() - weight @ z.square() / total
    effects = []
    for score in (z, square):
        sums = torch.zeros(int(cluster.max()) + 1, dtype=torch.float64).index_add_(0, cluster, weight * score)
        independent = weight @ score.square()
        effects.append(float(sums.square().sum() / independent) if independent > 0 else 1.0)
    return max(1.0, sum(effects) / 2)


def redraw_reference(reference: ReferenceSet, evaluated_mean: Tensor, weights: Tensor) -> Tensor:
    """Histograms ``(R, CELLS + 2)`` of the reference under redrawn buckets, with the mean of each redraw.

    Args:
        reference: The reference.
        evaluated_mean: Mean unit vector of the evaluated samples, ``(D,)``.
        weights: Number of draws of each bucket, ``(R, G)``.
    """
    rows, bucket = reference.units.float(), reference.buckets
    counts, sums = reference.moments["count"], reference.moments["unit_sum"]
    # Without a row's own bucket: its contribution is subtracted as often as the bucket is drawn.
    own = (
        (reference.units * sums[bucket]).sum(1) - counts[bucket] * (reference.units @ reference.unit_mean)
    ) / counts.sum()
    cell = reference.grid.cell
    start = ((reference.null_conformities - reference.grid.center) / cell).float() + CELLS // 2
    own, histograms = (own / cell).float(), []
    for part in weights.split(CHUNK):
        moved = (part @ sums) / (part @ counts)[:, None].clamp_min(1.0) - reference.unit_mean  # (b, D)
        shift = start - (moved @ evaluated_mean)[:, None].float() / cell
        weight = part.float()[:, bucket]
        value = shift.addmm_((moved / cell).float(), rows.T).addcmul_(weight - 1, own, value=-1)
        place = value.floor_().clamp_(-1, CELLS).long().add_(1 + (CELLS + 2) * torch.arange(len(part))[:, None])
        flat = torch.bincount(place.flatten(), weight.double().flatten(), minlength=len(part) * (CELLS + 2))
        histograms.append(flat.view(len(part), CELLS + 2))
    return torch.cat(histograms)
