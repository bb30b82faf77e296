"""The KL divergence from the reference's conformity distribution, its interval and its noise floor.

Both sides are redrawn: the evaluated side by its buckets, which hold whole groups, the reference by the groups
of its row sample. A redrawn reference has another mean unit vector, so its own conformities and, by the shift
m_u(P) . delta, the evaluated ones are taken under the redrawn mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clipconformity.functional.density import CELLS, Grid
from clipconformity.functional.divergence import (
    MIN_SAMPLES,
    Divergences,
    Readout,
    Side,
    anchored_grid,
    corrected,
    is_lower_bound,
    plan,
    plug_in,
    warn_lower_bound,
)
from clipconformity.functional.resampling import (
    Interval,
    basic_interval,
    bootstrap_weights,
    check_clusters,
    check_level,
    check_resamples,
    seeded,
)
from clipconformity.stream.readouts.base import Field, ReadOut
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.stream import Needs, Stream

CHUNK = 50
"""Resamples of the reference worked through at once: 50 x 10,000 conformities."""


class ConformityKLReadOut(ReadOut):
    """How far the distribution of conformity is from the reference's."""

    name = "conformity_kl"
    needs = Needs(conformity=True, reference=True)
    value = "conformity_kl"
    min_samples = MIN_SAMPLES
    fields = (
        Field("conformity_kl", "KL from the reference's conformity", "nats", "lower", interval=("kl_low", "kl_high"),
              compared=True),
        Field("reverse_kl", "KL of the reference's conformity from the samples'", "nats", "lower", compared=True,
              computed=False),
        Field("kl_low", "low end of the KL's 95% interval", "nats", compared=True, computed=False),
        Field("kl_high", "high end of the KL's 95% interval", "nats", compared=True, computed=False),
        Field("noise_floor", "95% quantile of the KL between two sets of one kind", "nats", compared=True,
              computed=False),
        Field("kl_is_lower_bound", "whether the KL is at least this", compared=True, computed=False),
    )  # fmt: skip

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Give the bias-corrected divergence; warn where it is only a lower bound."""
        return _value(Standing.of(stream))

    def resample(
        self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Give the reverse divergence, the interval and the noise floor."""
        return _uncertainty(Standing.of(stream), resamples, generator)

    def figures(self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Give all fields; the densities are fitted once for them."""
        standing = Standing.of(stream)
        return _value(standing) | _uncertainty(standing, resamples, generator)


def _value(standing: Standing) -> dict[str, Tensor]:
    if standing.is_lower_bound:
        warn_lower_bound()
    return {"conformity_kl": standing.divergences().forward}


def _uncertainty(standing: Standing, resamples: int, generator: torch.Generator | None) -> dict[str, Tensor]:
    low = high = floor = float("nan")
    if standing.parts > 1:  # one group alone says nothing of what another would give
        low, high = standing.interval(0.95, resamples, generator)
        floor = standing.noise_floor(0.95, resamples, generator)
    found = {"kl_low": low, "kl_high": high, "noise_floor": floor}
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
    tensors["reverse_kl"] = standing.divergences().reverse
    return tensors | {"kl_is_lower_bound": torch.tensor(standing.is_lower_bound)}


@dataclass(frozen=True)
class Standing:
    """The evaluated side and the reference side of a divergence."""

    evaluated: Side
    reference: Side
    buckets: Tensor
    """Histograms of the evaluated side by bucket, ``(G, CELLS + 2)``."""
    against: ReferenceSet
    grid: Grid
    unit_mean: Tensor
    """Mean unit vector of the evaluated samples, ``(D,)``."""

    @classmethod
    def of(cls, stream: Stream) -> Standing:
        """Read both sides out of a stream.

        Raises:
            ValueError: If there is no reference, or either side has too few samples.
        """
        moments = stream.checked(min_samples=MIN_SAMPLES)
        reference = stream.needed_reference("ConformityKL")
        if len(reference.conformities) < MIN_SAMPLES:
            raise ValueError(f"reference: expected at least {MIN_SAMPLES} samples, got {reference.count}.")
        grid = anchored_grid(reference.conformities)
        buckets = moments.towards(reference.unit_mean, grid)["conformity_counts"].cpu()
        evaluated = evaluated_side(buckets, moments.grouped)
        return cls(evaluated, reference_side(reference, grid), buckets, reference, grid, moments.unit_mean.cpu())

    @property
    def is_lower_bound(self) -> bool:
        """Whether the supports barely overlap."""
        return is_lower_bound(self.evaluated, self.reference)

    @property
    def parts(self) -> int:
        """Number of buckets that hold evaluated rows."""
        return int((self.buckets.sum(1) > 0).sum())

    @cached_property
    def plan(self) -> Readout:
        """How the two histograms are read out."""
        return plan(self.evaluated, self.reference)

    @cached_property
    def plain(self) -> Divergences:
        """Plug-in divergences both ways, before the bias is taken off."""
        return plug_in(self.plan, self.evaluated.counts[None], self.reference.counts[None])

    def divergences(self) -> Divergences:
        """Bias-corrected divergences both ways."""
        return corrected(self.plan, self.plain, squeeze=True)

    def interval(self, confidence: float, resamples: int, generator: torch.Generator | None) -> Interval:
        """Bootstrap interval of the forward divergence."""
        check_level(confidence)
        check_resamples(resamples)
        source = seeded(generator)
        evaluated = redraw_evaluated(self.buckets, resamples, source)
        reference = redraw_reference(self.against, self.unit_mean, self.grid, resamples, source)
        draws = plug_in(self.plan, evaluated, reference).forward
        low, high = basic_interval(self.plain.forward[0], sum(self.plan.biases), draws, confidence)
        return Interval(float(low), float(high))

    def noise_floor(self, quantile: float, resamples: int, generator: torch.Generator | None) -> float:
        """Quantile of the forward divergence under P = Q."""
        check_level(quantile, "quantile")
        check_resamples(resamples)
        check_clusters(self.parts)
        values = null_divergences(self.evaluated, self.reference, resamples, seeded(generator))
        return float(values.forward.quantile(quantile))


def evaluated_side(histogram: Tensor, grouped: bool) -> Side:
    """Side of a divergence from bucket histograms ``(G, CELLS + 2)``."""
    counts = histogram.sum(0)
    total = float(counts.sum())
    return Side(counts, total / (design_effect(histogram) if grouped else 1.0))


def reference_side(reference: ReferenceSet, grid: Grid) -> Side:
    """Side of a divergence from a reference's row sample."""
    values = reference.null_conformities
    effect = 1.0
    if reference.grouped:
        cell = reference.clusters * (CELLS + 2) + grid.locate(values)
        cells, weight = cell.unique(return_counts=True)
        effect = _design_effect(cells // (CELLS + 2), cells % (CELLS + 2), weight.double())
    return Side(grid.counts(values), len(values) / effect)


def design_effect(histogram: Tensor) -> float:
    """How many times fewer independent samples there are than rows, from the spread between buckets; at least 1."""
    cluster, cell = histogram.nonzero(as_tuple=True)
    return _design_effect(cluster, cell, histogram[cluster, cell])


def _design_effect(cluster: Tensor, cell: Tensor, weight: Tensor) -> float:
    """Variance of the mean and of the spread under clusters, over that under independent rows, averaged."""
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


def redraw_evaluated(histogram: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """Histograms ``(resamples, CELLS + 2)`` of redrawn buckets."""
    used = histogram[histogram.sum(1) > 0]
    check_clusters(len(used))
    return bootstrap_weights(resamples, len(used), generator) @ used


def redraw_reference(
    reference: ReferenceSet, evaluated_mean: Tensor, grid: Grid, resamples: int, generator: torch.Generator
) -> Tensor:
    """Histograms ``(resamples, CELLS + 2)`` of the reference under redrawn groups and the mean that they give.

    Args:
        reference: The reference.
        evaluated_mean: Mean unit vector of the evaluated samples, ``(D,)``.
        grid: Cells of the histogram.
        resamples: Number of redraws.
        generator: Source of randomness.
    """
    rows = reference.sample.rows
    units = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    sample_mean = units.mean(0)
    shrink = (len(units) / reference.count) ** 0.5  # the mean rests on all rows, not on the sampled ones alone
    clusters = reference.clusters
    check_clusters(int(clusters.max()) + 1)
    within, size_of = reference.within_groups
    cosine = units.double() @ reference.unit_mean
    histograms = []
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        weight = bootstrap_weights(size, int(clusters.max()) + 1, generator)[:, clusters]  # (b, k)
        drawn = (weight.float() @ units) / weight.sum(1, keepdim=True).float()
        delta = (drawn - sample_mean) * shrink  # (b, D)
        moved = cosine + (delta @ units.T).double()
        own = (reference.count * moved - weight * within) / (reference.count - weight * size_of)  # its group excluded
        value = own - (delta.double() @ evaluated_mean)[:, None]
        cell = grid.locate(value) + (CELLS + 2) * torch.arange(size)[:, None]
        flat = torch.bincount(cell.flatten(), weight.flatten(), minlength=size * (CELLS + 2))
        histograms.append(flat.view(size, CELLS + 2))
    return torch.cat(histograms)


def null_divergences(evaluated: Side, reference: Side, resamples: int, generator: torch.Generator) -> Divergences:
    """Bias-corrected divergences when both sides are drawn from the reference, each at its own effective size.

    Both are drawn from the reference's smooth density: its histogram's own noise, taken for structure, would make the
    floor of a large evaluated set too high.
    """
    fitted = plan(reference, reference)
    share = torch.zeros_like(reference.counts)
    window = slice(1 + fitted.first * fitted.factor, 1 + fitted.last * fitted.factor)
    smooth = torch.from_numpy(fitted.starts[0]).softmax(0)
    share[window] = smooth.repeat_interleave(fitted.factor) / fitted.factor
    sides = [Side(share * side.effective, side.effective) for side in (evaluated, reference)]
    readout = plan(*sides)
    drawn = [torch.poisson(side.counts.expand(resamples, -1).contiguous(), generator=generator) for side in sides]
    return corrected(readout, plug_in(readout, *drawn))
